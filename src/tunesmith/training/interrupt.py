"""SIGINT (Ctrl-C) and SIGTERM: they end a run between two updates, with all that was reached; a second one ends it at once.

Exit codes are those of shells and schedulers: 130 after SIGINT, 143 after SIGTERM.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], None]


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised where Ctrl-C would raise KeyboardInterrupt."""


class Interrupt:
    """asked: whether the user wants to stop. number: the signal that said so."""

    asked = False
    number = 0


def exit_code(stop: KeyboardInterrupt) -> int:
    """Of a process that ends because of it."""
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Within this block SIGINT and SIGTERM are noted rather than raised; the second one is raised."""
    interrupt = Interrupt()

    def note(number: int, frame: FrameType | None) -> None:
        if interrupt.asked:
            _raise(number, frame)
        interrupt.number = number
        interrupt.asked = True

    with _handled({signal.SIGINT: note, signal.SIGTERM: note}):
        yield interrupt


@contextmanager
def terminable() -> Iterator[None]:
    """Within this block SIGTERM is raised as `Terminated`, so that what is open is closed; the first process of a container
    would not hear it otherwise."""
    with _handled({signal.SIGTERM: _raise}):
        yield


def _raise(number: int, frame: FrameType | None) -> None:
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


@contextmanager
def _handled(handlers: dict[signal.Signals, Handler]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
