"""Numbers on the command line."""

import argparse
from collections.abc import Callable


def count(least: int = 0, most: int | None = None) -> Callable[[str], int]:
    """What argparse reads a number with: plain digits, from ``least`` to ``most``."""
    bounds = f" from {least} to {most}" if most is not None else f" of at least {least}" if least else ""

    def read(text: str) -> int:
        if not text.isascii() or not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
            raise argparse.ArgumentTypeError(f"{text!r} is not a count{bounds}")
        return int(text)

    return read


def number(text: str) -> float:
    """What argparse reads any number with."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
