"""JSON as its standard has it, and lists of it read one element at a time."""

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

from tunesmith.errors import DataError

CHUNK = 1 << 16
"""Characters read at once; doubled while one element does not fit."""
NEAR = 16
"""Characters before the end of what was read in which nothing is certain: a mistake or a number may only be cut short."""
TOO_LONG = object()
"""Stands for an element beyond the limit."""
_MARKS = re.compile(r'\\.|["\[\]{},]', re.DOTALL)
"""What tells where an element ends, and escapes, so that no quote in a text is taken for its end."""


class StrictJson:
    """Decodes as `json` does, which takes NaN for a number and the last of two equal keys, and says when it had to.

    Attributes:
        problem: what the standard does not allow in the value decoded last, or an empty string.
    """

    def __init__(self) -> None:
        self.problem = ""
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object, parse_constant=self._constant)

    def decode(self, text: str) -> Any:
        """The one value of a text. Raises json.JSONDecodeError or RecursionError."""
        self.problem = ""
        return self._decoder.decode(text)

    def decode_at(self, text: str, start: int) -> tuple[Any, int]:
        """The value that begins at ``start``, and where it ends. Raises as `decode`."""
        self.problem = ""
        return self._decoder.raw_decode(text, start)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            self.problem = f"the key {twice!r} stands there twice"
        return values

    def _constant(self, name: str) -> None:
        self.problem = f"{name} is no JSON value, write null"


class ListReader:
    """The elements of a JSON list in a file, one at a time; never more in memory than one of them and a chunk.

    Args:
        name: the file's, for messages. limit: characters of the longest element.
    """

    def __init__(self, file: TextIO, name: str, decoder: StrictJson, limit: int) -> None:
        self.file, self.name, self.decoder, self.limit = file, name, decoder, limit
        self._text, self._at, self._lines, self._end = "", 0, 0, False

    def begins(self) -> bool:
        """Whether the file holds a list; must be asked first. An empty file holds none."""
        return self._next_character() == "["

    @property
    def empty(self) -> bool:
        """Whether nothing is left but white space."""
        return self._next_character() == ""

    def __iter__(self) -> Iterator[Any]:
        """`TOO_LONG` in place of elements beyond the limit.

        Raises json.JSONDecodeError (its line that of the file), RecursionError, or DataError for such an element without an end.
        """
        self._at += 1
        if self._next_character() != "]":
            while True:
                yield self._element()
                if self._next_character() != ",":
                    break
                self._at += 1
                if self._next_character() == "]":
                    raise self._mistake("A comma stands before the end of the list", self._at)
        if self._next_character() != "]":
            raise self._mistake("Expecting ',' delimiter", self._at)
        self._at += 1
        if not self.empty:
            raise self._mistake("Extra data", self._at)

    def _element(self) -> Any:
        while True:
            try:
                value, end = self.decoder.decode_at(self._text, self._at)
            except json.JSONDecodeError as error:
                cut_short = error.pos >= len(self._text) - NEAR or error.msg.startswith("Unterminated")
                if self._end or not cut_short:
                    raise self._mistake(error.msg, error.pos) from None
            else:
                if end < len(self._text) - NEAR or self._end:  # a number may go on in what is not yet read
                    whole = end - self._at <= self.limit
                    self._at = end
                    return value if whole else TOO_LONG
            if len(self._text) - self._at > self.limit + NEAR:  # whatever is within the limit would have been certain
                self._pass_by()
                return TOO_LONG
            self._read()

    def _pass_by(self) -> None:
        """Go to what follows an element, by quotes and brackets alone: never more in memory than a chunk of it."""
        begins, depth, in_text = self._line(self._at), 0, False
        while not self._end:
            for mark in _MARKS.finditer(self._text, self._at):
                sign, self._at = mark[0], mark.end()
                if sign == '"':
                    in_text = not in_text
                elif not in_text and sign in "[{":
                    depth += 1
                elif not in_text and depth == 0 and sign in ",]}":
                    self._at = mark.start()
                    return
                elif not in_text and sign in "]}":
                    depth -= 1
            cut = self._text.endswith("\\", self._at)  # its other half is yet to be read
            self._at = len(self._text) - cut
            self._read()
        raise DataError(f"{self.name} line {begins}: the row that begins here never ends.", "Mend the JSON there.")

    def _next_character(self) -> str:
        """The next character that is not white space, or nothing at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if self._end:
                return ""
            self._read()

    def _read(self) -> None:
        """Forget what is behind, read as much again as there is."""
        self._lines += self._text.count("\n", 0, self._at)
        rest = self._text[self._at :]
        more = self.file.read(max(CHUNK, len(rest)))
        self._text, self._at, self._end = rest + more, 0, not more

    def _line(self, at: int) -> int:
        return self._lines + self._text.count("\n", 0, at) + 1

    def _mistake(self, message: str, at: int) -> json.JSONDecodeError:
        error = json.JSONDecodeError(message, self._text, at)
        error.lineno = self._line(at)
        return error
