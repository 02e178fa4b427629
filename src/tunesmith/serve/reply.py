"""What goes back to a client: the answers whole, or their pieces as events, in the form of the path that was asked."""

import json
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from typing import Any, ClassVar

from tunesmith.serve.answer import AnswerError, Finish, Piece
from tunesmith.serve.logprobs import Logprobs, TokenLogprob
from tunesmith.serve.protocol import Choice, Completion, Said
from tunesmith.serve.refusal import RefusalError
from tunesmith.serve.service import Talk
from tunesmith.serve.text_protocol import TextChoice, TextCompletion


class Reply(ABC):
    """To one request, as one path says it. prefix: of ids. chunk: what an event is called."""

    prefix: ClassVar[str]
    chunk: ClassVar[str]

    def __init__(self, talk: Talk) -> None:
        self.talk = talk
        self._head: dict[str, Any] = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": talk.model,
        }

    async def whole(self) -> dict[str, Any]:
        """The body, when all answers have ended. Raises AnswerError if the model failed."""
        pieces: list[list[Piece]] = [[] for _ in self.talk.answers]
        async for piece in self.talk.pieces():
            pieces[piece.index].append(piece)
        return self._completion(pieces)

    async def events(self, with_usage: bool) -> AsyncIterator[str]:
        """The chunks of a stream, as JSON, and the mark that ends it."""
        head = {**self._head, "object": self.chunk}
        uncounted = {"usage": None} if with_usage else {}
        for index in range(len(self.talk.answers)):
            for choice in self._opening(index):
                yield json.dumps({**head, "choices": [choice], **uncounted})
        try:
            async for piece in self.talk.pieces():
                for choice in self._choices(piece):
                    yield json.dumps({**head, "choices": [choice], **uncounted})
        except AnswerError as error:
            yield json.dumps(RefusalError(500, str(error), code="failed").body())
            return
        if with_usage:
            yield json.dumps({**head, "choices": [], "usage": self.talk.usage.model_dump()})
        yield "[DONE]"

    @abstractmethod
    def _completion(self, pieces: Sequence[Sequence[Piece]]) -> dict[str, Any]:
        """The body, of the pieces of each answer."""

    @abstractmethod
    def _opening(self, index: int) -> Sequence[dict[str, Any]]:
        """What an answer's chunks say before its text."""

    @abstractmethod
    def _choices(self, piece: Piece) -> Sequence[dict[str, Any]]:
        """What chunks say of a piece."""


class ChatReply(Reply):
    """That of /v1/chat/completions."""

    prefix, chunk = "chatcmpl", "chat.completion.chunk"

    def _completion(self, pieces: Sequence[Sequence[Piece]]) -> dict[str, Any]:
        choices = [
            Choice(index=index, message=Said(content=_text(answer)), finish_reason=_finish(answer))
            for index, answer in enumerate(pieces)
        ]
        body = Completion(**self._head, choices=choices, usage=self.talk.usage).model_dump()
        for choice, answer in zip(body["choices"], pieces, strict=True):  # not through pydantic, which would copy each of them
            choice["logprobs"] = self._logprobs([logprob for piece in answer for logprob in piece.logprobs])
        return body

    def _opening(self, index: int) -> Sequence[dict[str, Any]]:
        return [_chunk(index, {"role": "assistant", "content": ""})]

    def _choices(self, piece: Piece) -> Sequence[dict[str, Any]]:
        chunks = []
        if piece.text or piece.logprobs:
            chunks.append(_chunk(piece.index, {"content": piece.text}, logprobs=self._logprobs(piece.logprobs)))
        return [*chunks, _chunk(piece.index, {}, piece.finish)] if piece.finish else chunks

    def _logprobs(self, found: Sequence[TokenLogprob]) -> Logprobs | None:
        """None if nobody asked for them."""
        return None if self.talk.answers[0].ask.top_logprobs is None else {"content": list(found), "refusal": None}


class TextReply(Reply):
    """That of /v1/completions."""

    prefix, chunk = "cmpl", "text_completion"

    def _completion(self, pieces: Sequence[Sequence[Piece]]) -> dict[str, Any]:
        choices = [
            TextChoice(index=index, text=_text(answer), finish_reason=_finish(answer)) for index, answer in enumerate(pieces)
        ]
        return TextCompletion(**self._head, choices=choices, usage=self.talk.usage).model_dump()

    def _opening(self, index: int) -> Sequence[dict[str, Any]]:
        return []

    def _choices(self, piece: Piece) -> Sequence[dict[str, Any]]:
        return [{"index": piece.index, "text": piece.text, "logprobs": None, "finish_reason": piece.finish}]


def _chunk(index: int, delta: dict[str, Any], finish: Finish | None = None, logprobs: Logprobs | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


def _text(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def _finish(pieces: Sequence[Piece]) -> Finish:
    finish = pieces[-1].finish
    assert finish is not None
    return finish
