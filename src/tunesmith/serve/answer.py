"""Answers: grown in the worker's thread, read piece by piece on the event loop."""

import asyncio
import sys
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tunesmith.generate.engine import Sampling
from tunesmith.generate.logprobs import Chosen
from tunesmith.generate.text_stream import TextStream, begun
from tunesmith.serve.logprobs import TokenLogprob, TokenTexts

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Ask:
    """What to answer. prompt: token ids. stops: texts that end the answer and are not part of it. base: without the adapter.
    top_logprobs: tell the logprobs of its tokens, and of so many of the likeliest in the place of each; None for neither."""

    prompt: list[int]
    sampling: Sampling
    stops: tuple[str, ...] = ()
    base: bool = False
    top_logprobs: int | None = None


@dataclass(frozen=True)
class Piece:
    """More of one answer to a request. index: which one. text: what has become certain. finish: why it ended, None while it goes
    on. logprobs: of the tokens of this text, if they are asked for."""

    index: int
    text: str
    finish: Finish | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


class AnswerError(Exception):
    """The model failed, not the request."""


class StopText:
    """Text that ends before the first stop text, wherever pieces begin and end: what could become one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.held, self.found = "", False

    def add(self, text: str) -> str:
        """More text: what is certain to stand before any stop text."""
        whole = self.held + text
        places = [place for stop in self.stops if (place := whole.find(stop)) >= 0]
        if places:
            self.found, self.held = True, ""
            return whole[: min(places)]
        certain = len(whole) - max((begun(whole, stop) for stop in self.stops), default=0)
        self.held = whole[certain:]
        return whole[:certain]

    def close(self) -> str:
        """What was held back and became none."""
        rest, self.held = self.held, ""
        return rest


class Pieces:
    """What the answers to one request put in as they grow, in the worker's thread; made and read on the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Piece | Exception] = asyncio.Queue()

    def put(self, item: Piece | Exception) -> None:
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)
        except RuntimeError as closed:  # the loop has ended, and with it whoever waited
            print(f"an answer came too late: {closed}", file=sys.stderr)

    async def read(self, answers: int) -> AsyncIterator[Piece]:
        """The pieces of so many answers as they come, until each has ended.

        Raises:
            AnswerError: the model failed.
        """
        while answers:
            item = await self._queue.get()
            if isinstance(item, Exception):
                raise item
            answers -= item.finish is not None
            yield item


class Answer:
    """One answer to a request, with an index among them. `grow` and `fail` are the worker's. gone: nobody waits for it any more."""

    def __init__(self, ask: Ask, texts: TokenTexts, stop_ids: frozenset[int], pieces: Pieces, index: int = 0) -> None:
        self.ask, self.stop_ids, self.index = ask, stop_ids, index
        self.tokens, self.gone = 0, False
        self._texts, self._pieces = texts, pieces
        self._text, self._stop = TextStream(texts.tokenizer, strip=False), StopText(ask.stops)
        self._read, self._sent = 0, 0  # characters that its tokens gave, and those that were handed on
        self._logprobs: deque[tuple[int, TokenLogprob]] = deque()  # and where in the text their tokens begin

    def grow(self, token: int, last: bool, logprob: Chosen | None = None) -> bool:
        """One more token; whether the answer goes on. last: the decoder ended it."""
        self.tokens += 1
        ended = token in self.stop_ids
        if logprob is not None and not ended:
            self._logprobs.append((self._read, self._texts.told(logprob)))
        read = self._text.add(token)
        self._read += len(read)
        text = self._stop.add(read)
        if last and not self._stop.found:
            text += self._stop.add(self._text.close())
        if self._stop.found or ended:
            self._put(text + self._stop.close(), "stop")
        elif last:
            self._put(text + self._stop.close(), "length")
        elif text:
            self._put(text)
        return not (last or self._stop.found)

    def fail(self, error: Exception) -> None:
        """There will be no more of it."""
        self._pieces.put(error)

    def _put(self, text: str, finish: Finish | None = None) -> None:
        self._sent += len(text)
        whole = finish is not None and not self._stop.found  # then tokens without a text count too
        told = []
        while self._logprobs and (whole or self._logprobs[0][0] < self._sent):
            told.append(self._logprobs.popleft()[1])
        self._pieces.put(Piece(self.index, text, finish, tuple(told)))
