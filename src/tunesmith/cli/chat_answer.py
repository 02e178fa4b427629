"""One answer as it comes: pieces of text, and at the end why it ended and what it took."""

import time
from collections.abc import Iterator
from typing import Any

from tunesmith.cli.chat_text import OPENS
from tunesmith.generate.engine import Sampling
from tunesmith.generate.session import Session, room_for
from tunesmith.generate.text_stream import TextStream

STOP_TOKEN, MAX_NEW_TOKENS, CONTEXT, INTERRUPTED = "stop_token", "max_new_tokens", "context", "interrupted"
"""Why an answer ended: as it should, at the longest that was asked for, where the model can see no further, or by the user."""


class Answer:
    """An answer to messages. Iterating over it makes it; leaving off early interrupts it.

    Attributes:
        text: what has come so far. tokens, seconds: what that took, the stop token included. prompt_tokens: what was read.
        opened: how the prompt begins the answer, for models that are made to think; ``text`` begins with it.

    Raises:
        DataError: the messages leave no room for an answer, or hold a control token that cannot be kept text.
        ModelError: the chat template refuses them.
    """

    def __init__(self, session: Session, messages: list[dict[str, str]], sampling: Sampling, *, base: bool = False) -> None:
        self.session, self.messages, self.sampling, self.base = session, messages, sampling, base
        self.prompt = session.renderer.prompt_ids(messages)
        fix = "Shorten the last, take turns back with /undo, or begin another talk with /new."
        self.room = room_for(len(self.prompt), session.context, fix)
        begun = session.renderer.tokenizer.decode(self.prompt[-8:]).rstrip().endswith(OPENS)
        self.opened = f"{OPENS}\n" if begun else ""
        self.text, self.tokens, self.seconds, self.last = self.opened, 0, 0.0, -1

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the messages as the chat template writes them."""
        return len(self.prompt)

    @property
    def stop(self) -> str:
        """Why it ended."""
        if self.last in self.session.stop_ids:
            return STOP_TOKEN
        if self.tokens == self.room:
            return CONTEXT
        return MAX_NEW_TOKENS if self.tokens == self.sampling.max_new_tokens else INTERRUPTED

    @property
    def longer(self) -> int:
        """The max_new_tokens to ask for if it was cut at fewer: twice what came, as far as there is room."""
        return min(2 * self.tokens, self.room)

    def __iter__(self) -> Iterator[str]:
        """Pieces of the text as they come, without ``opened``; some are empty."""
        begun, text = time.perf_counter(), TextStream(self.session.renderer.tokenizer)
        tokens = self.session.tokens(self.prompt, self.sampling, base=self.base)
        for self.last in tokens:
            piece = text.add(self.last)
            self.text, self.tokens = self.text + piece, self.tokens + 1
            self.seconds += time.perf_counter() - begun
            yield piece
            begun = time.perf_counter()
        rest = text.close()
        self.text += rest
        yield rest

    def record(self) -> dict[str, Any]:
        """What is worth knowing of it, for programs."""
        return {
            "answer": self.text, "stop": self.stop, "tokens": self.tokens, "prompt_tokens": self.prompt_tokens,
            "seconds": round(self.seconds, 3),
        }  # fmt: skip
