"""Rows to conversations: which columns hold what, and whether each row is something that can be trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.data.sources import BUNDLED_COLUMNS, Row, is_bundled
from tunesmith.errors import DataError, nearest

ROLES = ("system", "user", "assistant", "tool")
PAIRS = (
    ("prompt", "completion"),
    ("question", "answer"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("query", "response"),
    ("input", "output"),
    ("sentence", "translation_extra"),
)
"""Column pairs that are understood without being named."""


@dataclass(frozen=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """messages: oldest first, at least one of them the assistant's. where: the row they come from."""

    messages: tuple[Message, ...]
    where: str

    def as_dicts(self) -> list[dict[str, str]]:
        """The messages as transformers' chat templates take them."""
        return [{"role": message.role, "content": message.content} for message in self.messages]


@dataclass(frozen=True)
class Columns:
    """How a row becomes a conversation: ``messages`` alone, or ``prompt`` and ``completion``."""

    messages: str | None = None
    prompt: str | None = None
    completion: str | None = None

    def describe(self) -> str:
        return f"messages from {self.messages!r}" if self.messages else f"{self.prompt!r} → {self.completion!r}"


def find_columns(
    rows: Sequence[Row], name: str, messages: str | None = None, prompt: str | None = None, completion: str | None = None
) -> Columns:
    """The columns the user named, or those found by their names.

    Raises:
        DataError: a named column is not there, or none was named and none is recognised.
    """
    there = list(rows[0].values)
    for column in (messages, prompt, completion):
        if column is not None and column not in there:
            raise DataError(
                f"{name} has no column {column!r}{nearest(column, there)}; it has {', '.join(there)}.",
                "Name the columns with --prompt and --completion, or --messages.",
            )
    if messages or prompt:
        return Columns(messages, prompt, completion)
    if is_bundled(name):
        return Columns(None, *BUNDLED_COLUMNS[name])
    if "messages" in there:
        return Columns("messages")
    for pair in PAIRS:
        if set(pair) <= set(there):
            return Columns(None, *pair)
    raise DataError(
        f"The columns of {name} ({', '.join(there)}) do not say which is the prompt and which the answer.",
        f"Add --prompt {there[0]} --completion {there[-1]}, or the columns you mean.",
    )


def to_conversations(rows: Sequence[Row], columns: Columns) -> list[Conversation]:
    """One conversation a row.

    Raises:
        DataError: a row has no assistant text, an unknown role, or content that is not text (with file and line).
    """
    return [_conversation(row, columns) for row in rows]


def _conversation(row: Row, columns: Columns) -> Conversation:
    if columns.messages:
        messages = _messages(row.values.get(columns.messages), row.where, columns.messages)
    else:
        sides = ((columns.prompt, "user"), (columns.completion, "assistant"))
        messages = [m for column, role in sides if column for m in _side(row.values.get(column), role, row.where, column)]
    if not any(message.role == "assistant" and message.content.strip() for message in messages):
        raise DataError(f"{row.where} has no assistant text to learn.", "Give it an answer or remove the row.")
    return Conversation(tuple(messages), row.where)


def _side(value: Any, role: str, where: str, column: str) -> list[Message]:
    """A prompt or completion: text, or (as trl has it) a list of messages."""
    if isinstance(value, list):
        return _messages(value, where, column)
    return [Message(role, _text(value, f"{where}, column {column!r}"))]


def _messages(value: Any, where: str, column: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise DataError(
            f"{where}: {column!r} is {_kind(value)}, not a list of messages.", 'Write [{"role": "user", "content": …}, …].'
        )
    return [_message(item, f"{where}, message {number}") for number, item in enumerate(value, 1)]


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, dict) or "role" not in item or "content" not in item:
        raise DataError(f"{where} is not an object with role and content.", 'Write {"role": "user", "content": …}.')
    if item["role"] not in ROLES:
        raise DataError(
            f"{where}: role {item['role']!r} is not one of {', '.join(ROLES)}{nearest(str(item['role']), ROLES)}.",
            "Rename the role.",
        )
    return Message(item["role"], _text(item["content"], where))


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where} is {_kind(value)}, not text.", "Give it text or remove the row.")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError(f"{where} holds half a character (a lone surrogate).", "Mend the text or remove the row.")
    return value


def _kind(value: Any) -> str:
    return "empty" if value is None or value == [] else f"a {type(value).__name__}"
