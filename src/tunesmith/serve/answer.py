"""One answer: grown in the worker's thread, read piece by piece on the event loop."""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tunesmith.generate.engine import Sampling
from tunesmith.generate.text_stream import TextStream, begun

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Ask:
    """What to answer. prompt: token ids. stops: texts that end the answer and are not part of it. base: without the adapter."""

    prompt: list[int]
    sampling: Sampling
    stops: tuple[str, ...] = ()
    base: bool = False


@dataclass(frozen=True)
class Piece:
    """text: what has become certain. tokens: of the answer so far. finish: why it ended, None while it goes on."""

    text: str
    tokens: int
    finish: Finish | None = None


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


class Answer:
    """Made on the event loop and iterated there; `grow` and `fail` are the worker's. gone: nobody waits for it any more."""

    def __init__(self, ask: Ask, tokenizer: Any, stop_ids: frozenset[int]) -> None:
        self.ask, self.stop_ids = ask, stop_ids
        self.tokens, self.gone = 0, False
        self._text, self._stop = TextStream(tokenizer, strip=False), StopText(ask.stops)
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[Piece | Exception] = asyncio.Queue()

    def grow(self, token: int, last: bool) -> bool:
        """One more token; whether the answer goes on. last: the decoder ended it."""
        self.tokens += 1
        ended = token in self.stop_ids
        text = self._stop.add(self._text.add(token))
        if last and not self._stop.found:
            text += self._stop.add(self._text.close())
        if self._stop.found or ended:
            self._put(Piece(text + self._stop.close(), self.tokens, "stop"))
        elif last:
            self._put(Piece(text + self._stop.close(), self.tokens, "length"))
        elif text:
            self._put(Piece(text, self.tokens))
        return not (last or self._stop.found)

    def fail(self, error: Exception) -> None:
        """There will be no more of it."""
        self._put(error)

    def _put(self, item: Piece | Exception) -> None:
        try:
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, item)
        except RuntimeError as closed:  # the loop has ended, and with it whoever waited
            print(f"an answer came too late: {closed}", file=sys.stderr)

    async def pieces(self) -> AsyncIterator[Piece]:
        """The answer as it comes; the last piece has a finish.

        Raises:
            AnswerError: the model failed.
        """
        while True:
            item = await self._pieces.get()
            if isinstance(item, Exception):
                raise item
            yield item
            if item.finish:
                return
