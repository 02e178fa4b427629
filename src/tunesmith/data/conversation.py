"""A conversation: what a row means, before any tokenizer sees it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ROLES = ("system", "user", "assistant", "tool")
DOCUMENT = "document"
"""Role of plain text that is no turn of a conversation; it stands alone in its row."""


@dataclass(frozen=True)
class Message:
    """role: one of `ROLES`, or `DOCUMENT`. content: the text, possibly empty. train: false leaves an answer unlabelled.
    more: further fields that chat templates read: tool_calls, tool_call_id, name, reasoning_content."""

    role: str
    content: str
    train: bool = True
    more: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {"role": self.role, "content": self.content, **self.more}


@dataclass(frozen=True)
class Conversation:
    """messages: oldest first, at least one of them the assistant's, or one document. where: the row they come from.
    tools: what the assistant may call, as JSON schemas. weight: how often it is used in an epoch."""

    messages: tuple[Message, ...]
    where: str
    tools: tuple[dict[str, Any], ...] = ()
    weight: float = 1.0

    def as_dicts(self) -> list[dict[str, Any]]:
        """The messages as transformers' chat templates take them."""
        return [message.as_dict() for message in self.messages]

    @property
    def is_document(self) -> bool:
        """Whether it is plain text, trained as it stands."""
        return self.messages[0].role == DOCUMENT
