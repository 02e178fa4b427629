"""Rows of jsonl, json, csv and tsv files, plain or gzipped. Read line by line: one row is in memory at a time.

The one exception is a JSON file whose list stands inside an object, which has to be read to find the list.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from tunesmith.data.bad_rows import OnBadRow
from tunesmith.data.row import ROW_LIMIT, Row, too_long
from tunesmith.data.strict_json import ListReader, StrictJson
from tunesmith.errors import DataError, RowError

UTF16 = (b"\xff\xfe", b"\xfe\xff")
ROW_EXAMPLE = 'Write rows such as {"prompt": …, "completion": …}.'


def text_rows(path: Path, suffix: str, bad: OnBadRow) -> Iterator[Row]:
    """The rows of a text file.

    Args:
        suffix: .jsonl, .json, .csv or .tsv; ``path`` may have .gz behind it.

    Raises:
        DataError: the file cannot be read, or not to its end. What is wrong with one row goes to ``bad``.
    """
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _csv}
    try:
        with _open(path) as file:
            yield from readers[suffix](file, path, bad)
    except (EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged or cut short: {error}", "Fetch or compress it again.") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}.", "Check the file and its permissions.") from error


def _open(path: Path) -> TextIO:
    """The file as text. A byte that is not UTF-8 becomes half a character, so that the line it stands on can be named."""
    opened: Any = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as file:
        if file.read(2) in UTF16:
            raise DataError(f"{path} is UTF-16, not UTF-8 text.", "Save it as UTF-8.")
    return opened(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="")


class _Lines:
    """A file's lines, and the number of the one given last. One that is too long is never held whole."""

    def __init__(self, file: TextIO, path: Path, bad: OnBadRow) -> None:
        self.file, self.path, self.bad, self.number = file, path, bad, 0

    def __iter__(self) -> Iterator[str]:
        while line := self.file.readline(ROW_LIMIT):
            self.number += 1
            if len(line) < ROW_LIMIT or line.endswith("\n"):
                yield line
                continue
            while (line := self.file.readline(ROW_LIMIT)) and not line.endswith("\n"):
                pass
            self.bad(too_long(self.where))

    @property
    def where(self) -> str:
        return f"{self.path} line {self.number}"


def _jsonl(file: TextIO, path: Path, bad: OnBadRow) -> Iterator[Row]:
    lines, decoder = _Lines(file, path, bad), StrictJson()
    for line in lines:
        if line.isspace():
            continue
        try:
            row = Row(_object(_parse(line, decoder, lines.where), lines.where), lines.where)
        except RowError as error:
            bad(error)
            continue
        del line  # one row may be as large as all others together
        yield row


def _parse(line: str, decoder: StrictJson, where: str) -> Any:
    if not _is_utf8(line):
        raise RowError(f"{where} is not UTF-8 text.", "Save the file as UTF-8.")
    try:
        value = decoder.decode(line)
        reason = decoder.problem
    except json.JSONDecodeError as error:
        reason = error.msg
    except RecursionError:
        reason = "nested too deeply"
    except ValueError:  # Python reads no number of more than 4,300 digits
        reason = "a number has thousands of digits"
    if reason:
        raise RowError(f"{where} is not JSON: {reason}.", "Write one JSON object a line.")
    return value


def _is_utf8(text: str) -> bool:
    """Whether no byte had to be escaped."""
    try:
        return text.isascii() or text.encode() is not None
    except UnicodeEncodeError:
        return False


def _json(file: TextIO, path: Path, bad: OnBadRow) -> Iterator[Row]:
    decoder = StrictJson()
    reader = ListReader(file, str(path), decoder, ROW_LIMIT)
    is_list = reader.begins()
    try:
        if is_list:
            yield from _rows(reader, decoder, path, bad)
        elif not reader.empty:
            file.seek(0)
            yield from _rows(_list_within(file.read(), decoder, path), decoder, path, bad)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and not is_list:  # JSON lines under a .json name are common
            file.seek(0)
            yield from _jsonl(file, path, bad)
            return
        raise DataError(f"{path} line {error.lineno}: {error.msg}.", "Mend the JSON there.") from error
    except RecursionError as error:
        raise DataError(f"{path} is nested too deeply.", "Write a list of objects.") from error
    except ValueError as error:
        raise DataError(f"{path} holds a number of thousands of digits.", "Write it as text.") from error


def _rows(values: Any, decoder: StrictJson, path: Path, bad: OnBadRow) -> Iterator[Row]:
    for number, value in enumerate(values, 1):
        where = f"{path} row {number}"
        try:
            if decoder.problem:
                raise RowError(f"{where} is not JSON: {decoder.problem}.", "Mend the JSON there.")
            row = Row(_object(value, where), where)
        except RowError as error:
            bad(error)
            continue
        yield row


def _list_within(text: str, decoder: StrictJson, path: Path) -> list[Any]:
    """The rows of a file that begins with an object: the one list in it, or it alone."""
    content = decoder.decode(text)
    if decoder.problem:
        raise DataError(f"{path} is not JSON: {decoder.problem}.", "Mend the JSON there.")
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}, not a list of rows.", "Write a list of objects.")
    lists = [value for value in content.values() if isinstance(value, list)]
    alone = len(lists) != 1 or all(isinstance(item, dict) and {"role", "from"} & set(item) for item in lists[0])
    return [content] if alone else lists[0]


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RowError(f"{where} is a {type(value).__name__}, not an object.", ROW_EXAMPLE)
    return value


def _csv(file: TextIO, path: Path, bad: OnBadRow) -> Iterator[Row]:
    csv.field_size_limit(ROW_LIMIT)  # the module's own is 131,072 characters
    lines = _Lines(file, path, bad)
    separator = "\t" if path.name.removesuffix(".gz").endswith(".tsv") else ","
    reader = csv.reader(iter(lines), delimiter=separator, strict=True)
    header: list[str] = []
    while True:
        try:
            fields = next(reader, None)
            if fields is None:
                return
            if not header:
                header = _header(fields, lines.where)
            elif fields:
                yield Row(_cells(header, fields, lines.where), lines.where)
        except csv.Error as error:
            if "unexpected end" in str(error):
                raise DataError(f"{lines.where}: a quoted field never ends.", "Close its quote.") from error
            _refuse(RowError(f"{lines.where}: {error}.", "Mend the row there."), header, bad)
        except RowError as error:
            _refuse(error, header, bad)


def _refuse(error: RowError, header: list[str], bad: OnBadRow) -> None:
    """Without a header no row means anything."""
    if not header:
        raise error
    bad(error)


def _header(fields: list[str], where: str) -> list[str]:
    """Column names. Raises RowError."""
    if twice := [name for name in dict.fromkeys(fields) if fields.count(name) > 1]:
        raise RowError(f"{where}: the header names {twice[0]!r} twice.", "Give every column a name of its own.")
    return _texts(fields, where)


def _cells(header: list[str], fields: list[str], where: str) -> dict[str, str]:
    if len(fields) != len(header):
        raise RowError(
            f"{where} has {len(fields)} fields, the header has {len(header)}.", "Quote fields that contain the separator."
        )
    return dict(zip(header, _texts(fields, where)))


def _texts(fields: list[str], where: str) -> list[str]:
    if not all(map(_is_utf8, fields)):
        raise RowError(f"{where} is not UTF-8 text.", "Save the file as UTF-8.")
    return fields
