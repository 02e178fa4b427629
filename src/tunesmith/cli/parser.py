"""Arguments of a command; what is wrong with them is said as any mistake is."""

import argparse
from typing import NoReturn

from tunesmith.errors import RecipeError


class Parser(argparse.ArgumentParser):
    """argparse's own, but for how it complains."""

    def error(self, message: str) -> NoReturn:
        """Raises RecipeError."""
        raise RecipeError(f"{self.prog}: {message}.", f"Try `{self.prog} --help`.")
