"""The lines of a text file, numbered; one that is too long is never held whole."""

from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from tunesmith.data.bad_rows import OnBadRow
from tunesmith.data.row import ROW_LIMIT, too_long
from tunesmith.errors import DataError

BOM = "\ufeff"


class Lines:
    """A file's lines, and the number of the one given last. One that is too long is never held whole.

    Attributes:
        row: where rows may go on over several lines, the line on which the one that is being read begins.
    """

    def __init__(self, file: TextIO, path: Path, bad: OnBadRow) -> None:
        self.file, self.path, self.bad, self.number = file, path, bad, 0
        self.row: int | None = None

    def __iter__(self) -> Iterator[str]:
        while line := self.file.readline(ROW_LIMIT):
            self.number += 1
            if len(line) < ROW_LIMIT or line.endswith("\n"):
                yield line
                continue
            quotes = line.count('"')
            while (line := self.file.readline(ROW_LIMIT)) and not line.endswith("\n"):
                quotes += line.count('"')
            if self.row is not None and (self.number > self.row or (quotes + line.count('"')) % 2):
                raise endless(self.begun)
            self.bad(too_long(self.where))
            self.row = None if self.row is None else self.number + 1

    @property
    def where(self) -> str:
        return f"{self.path} line {self.number}"

    @property
    def begun(self) -> str:
        """A row of several lines is named by its first."""
        return f"{self.path} line {self.row}"


def endless(where: str) -> DataError:
    """The error for a row of several lines after which nobody knows where the next one begins."""
    return DataError(
        f"{where}: the row that begins here is longer than {ROW_LIMIT:,} characters, or its quote never closes.",
        "Split the row, or close its quote.",
    )


def is_utf8(text: str) -> bool:
    """Whether no byte had to be escaped."""
    try:
        return text.isascii() or text.encode() is not None
    except UnicodeEncodeError:
        return False
