"""The one thread that owns the model: answers of all requests grow in it side by side, a token a turn."""

import queue
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from tunesmith.generate.engine import Decoder
from tunesmith.serve.answer import Answer, AnswerError
from tunesmith.training.guard import device_failure


class Worker:
    """Grows answers until it is closed, or its GPU fails; the tuned model and the base take turns.

    Args:
        decoder: makes a decoder of the tuned model, or of the base.

    Attributes:
        over: why it gives no more answers; None while it does.
    """

    def __init__(self, decoder: Callable[[bool], Decoder]) -> None:
        self._arrived: queue.SimpleQueue[Sequence[Answer] | None] = queue.SimpleQueue()
        self._sides = {base: _Side(partial(decoder, base)) for base in (False, True)}
        self._thread: threading.Thread | None = None
        self._ending = threading.Lock()  # nothing is handed over while it comes to its end
        self.over: str | None = "This server has not begun yet."

    def start(self) -> None:
        self.over = None
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def living(self) -> int:
        """Answers that have at least their first token and are not finished."""
        return sum(answer.tokens > 0 for side in self._sides.values() for answer in list(side.answers.values()))

    def submit(self, answers: Sequence[Answer]) -> None:
        """Begin answers together at the next turn, so that a prompt they share is computed once; if there is none any more, they
        fail."""
        with self._ending:
            if self.over is None:
                self._arrived.put(answers)
            else:
                _fail(answers, AnswerError(self.over))

    def stop(self) -> None:
        """End all answers at the next token, and then the thread."""
        self._arrived.put(None)

    def close(self) -> None:
        """Stop, and wait for it."""
        if self._thread is not None:
            self.stop()
            self._thread.join(timeout=30)

    def _run(self) -> None:
        over = "This server is being stopped."
        try:
            while self._take():
                for side in self._sides.values():
                    side.step()
        except BaseException as error:  # whatever it is, those who wait must not wait for ever
            over = f"{_reason(error)} No more answers come until the server is started again."
            _say(_failure(error))
            _say(over)
        with self._ending:
            self.over = over
        for side in self._sides.values():
            side.fail(AnswerError(over))
        with suppress(queue.Empty):
            while True:
                _fail(self._arrived.get(block=False) or (), AnswerError(over))

    def _take(self) -> bool:
        """Take in what has arrived, waiting for it if there is nothing else to do. False: it is over."""
        idle = not any(side.answers for side in self._sides.values())
        while True:
            try:
                answers = self._arrived.get(block=idle)
            except queue.Empty:
                return True
            if answers is None:
                return False
            for number, answer in enumerate(answers):
                try:
                    self._sides[answer.ask.base].begin(answer)
                except BaseException:
                    self._arrived.put(answers[number:])  # they hear of it when it is over
                    raise
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
            key = self._decoder.add(answer.ask.prompt, answer.ask.sampling, answer.ask.top_logprobs)
            self.answers[key] = answer
        except BaseException as error:  # the others go on, if they can
            if _is_the_end(error):
                raise
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
                if not self.answers[key].grow(token, key not in living, self._decoder.logprobs.get(key)):
                    self._end(key)
        except BaseException as error:  # out of memory, say: these answers are lost, the next ones are not
            if _is_the_end(error):  # nobody hears of it before the server says that it is over
                raise
            self.fail(_told(error))

    def fail(self, error: AnswerError) -> None:
        """End all answers in it with an error; the next one gets a new decoder."""
        _fail(self.answers.values(), error)
        self.answers.clear()
        self._decoder = None

    def _end(self, key: int) -> None:
        del self.answers[key]
        assert self._decoder is not None
        self._decoder.drop(key)


def _fail(answers: Iterable[Answer], error: AnswerError) -> None:
    for answer in answers:
        answer.fail(error)


def _is_the_end(error: BaseException) -> bool:
    """Whether no answer can come after it: nothing works again on a GPU that failed."""
    return not isinstance(error, Exception) or device_failure(error) is not None


def _failure(error: BaseException) -> str:
    return f"an answer failed: {type(error).__name__}: {error}"


def _told(error: BaseException) -> AnswerError:
    """Its kind for the client, all of it for the terminal."""
    _say(_failure(error))
    return AnswerError(f"{_reason(error)} The server's terminal says more.")


def _reason(error: BaseException) -> str:
    """What went wrong, in words that hold nothing of what was asked."""
    failed = device_failure(error)
    return f"The GPU failed ({failed})." if failed else f"The model failed with {type(error).__name__}."


def _say(line: str) -> None:
    with suppress(OSError, ValueError):  # the terminal may be gone; the model is not
        print(line, file=sys.stderr, flush=True)


def decoders(session: Any, slots: int) -> Callable[[bool], Decoder]:
    """What a worker makes its decoders with."""
    pad = session.renderer.tokenizer.pad_token_id
    return lambda base: Decoder(session.model, session.stop_ids, pad, slots, context=session.context, base=base)
