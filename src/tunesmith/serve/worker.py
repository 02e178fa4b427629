"""The one thread that owns the model: answers of all requests grow in it side by side, a token a turn."""

import queue
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from tunesmith.generate.engine import Decoder
from tunesmith.serve.answer import Answer, AnswerError


class Worker:
    """Grows answers until it is closed; the tuned model and the base take turns.

    Args:
        decoder: makes a decoder of the tuned model, or of the base.
    """

    def __init__(self, decoder: Callable[[bool], Decoder]) -> None:
        self._arrived: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
        self._sides = {base: _Side(partial(decoder, base)) for base in (False, True)}
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def living(self) -> int:
        """Answers that have at least their first token and are not finished."""
        return sum(answer.tokens > 0 for side in self._sides.values() for answer in list(side.answers.values()))

    def submit(self, answer: Answer) -> None:
        """Begin an answer at the next turn."""
        self._arrived.put(answer)

    def close(self) -> None:
        """End all answers at the next token, and the thread."""
        if self._thread is not None:
            self._arrived.put(None)
            self._thread.join(timeout=30)

    def _run(self) -> None:
        while self._take():
            for side in self._sides.values():
                side.step()

    def _take(self) -> bool:
        """Take in what has arrived, waiting for it if there is nothing else to do. False: it is over."""
        idle = not any(side.answers for side in self._sides.values())
        while True:
            try:
                answer = self._arrived.get(block=idle)
            except queue.Empty:
                return True
            if answer is None:
                return False
            self._sides[answer.ask.base].begin(answer)
            idle = False


class _Side:
    """A decoder and the answers in it, by the decoder's keys."""

    def __init__(self, make: Callable[[], Decoder]) -> None:
        self._make = make
        self._decoder: Decoder | None = None  # made when first asked for, in the worker's thread
        self.answers: dict[int, Answer] = {}

    def begin(self, answer: Answer) -> None:
        if answer.gone:
            return
        try:
            self._decoder = self._decoder or self._make()
            self.answers[self._decoder.add(answer.ask.prompt, answer.ask.sampling)] = answer
        except Exception as error:  # whatever it is, the others go on
            answer.fail(_told(error))

    def step(self) -> None:
        """One more token for every answer that somebody waits for."""
        try:
            for key in [key for key, answer in self.answers.items() if answer.gone]:
                self._end(key)
            if self._decoder is None or not self.answers:
                return
            tokens = self._decoder.step()
            living = set(self._decoder.living)
            for key, token in tokens.items():
                if not self.answers[key].grow(token, last=key not in living):
                    self._end(key)
        except Exception as error:  # out of memory, say: these answers are lost, the next ones are not
            told = _told(error)
            for answer in self.answers.values():
                answer.fail(told)
            self.answers.clear()
            self._decoder = None

    def _end(self, key: int) -> None:
        del self.answers[key]
        assert self._decoder is not None
        self._decoder.drop(key)


def _told(error: Exception) -> AnswerError:
    """Its kind for the client, all of it for the terminal."""
    print(f"an answer failed: {type(error).__name__}: {error}", file=sys.stderr)
    return AnswerError(f"The model failed with {type(error).__name__}; the server's terminal says more.")


def decoders(session: Any, slots: int) -> Callable[[bool], Decoder]:
    """What a worker makes its decoders with."""
    pad = session.renderer.tokenizer.pad_token_id
    return lambda base: Decoder(session.model, session.stop_ids, pad, slots, base=base)
