"""Arguments of a command; what is wrong with them is said as any mistake is."""

import argparse
from typing import NoReturn

from tunesmith.errors import RecipeError


class Parser(argparse.ArgumentParser):
    """argparse's own, but for how it complains."""

    def error(self, message: str) -> NoReturn:
        """Raises RecipeError."""
        raise RecipeError(f"{self.prog}: {message}.", f"Try `{self.prog} --help`.")


def named(text: str) -> str:
    """What argparse reads a name with: an empty one, as an unset variable of the shell leaves, would mean the folder one is in."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty")
    return text
