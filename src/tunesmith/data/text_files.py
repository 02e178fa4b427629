"""Rows of jsonl, json, csv and tsv files, plain or gzipped. Read line by line: one row is in memory at a time.

The one exception is a JSON file whose list stands inside an object, which has to be read to find the list.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from tunesmith.data.bad_rows import OnBadRow
from tunesmith.data.csv_files import csv_rows
from tunesmith.data.lines import BOM, Lines, is_utf8
from tunesmith.data.row import ROW_LIMIT, Row, too_long
from tunesmith.data.signatures import LONGEST, check_signature
from tunesmith.data.strict_json import TOO_LONG, ListReader, StrictJson
from tunesmith.data.text import kind_of, listed
from tunesmith.errors import DataError, RowError

UTF16 = (b"\xff\xfe", b"\xfe\xff")
MESSAGES = ({"role", "content"}, {"role", "tool_calls"}, {"from", "value"})
"""Keys that make an object a message."""
ROW_EXAMPLE = 'Write rows such as {"prompt": …, "completion": …}.'


def text_rows(path: Path, suffix: str, bad: OnBadRow) -> Iterator[Row]:
    """The rows of a text file.

    Args:
        suffix: .jsonl (or .ndjson, its other name), .json, .csv or .tsv; ``path`` may have .gz behind it.

    Raises:
        DataError: the file cannot be read, or not to its end. What is wrong with one row goes to ``bad``.
    """
    readers = {".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json, ".csv": csv_rows, ".tsv": csv_rows}
    try:
        with _open(path) as file:
            yield from readers[suffix](file, path, bad)
    except gzip.BadGzipFile as error:
        raise DataError(f"{path} is not gzip.", "Take .gz off its name, or compress it.") from error
    except (EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged or cut short: {error}", "Fetch or compress it again.") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}.", "Check the file and its permissions.") from error


def _open(path: Path) -> TextIO:
    """The file as text. A byte that is not UTF-8 becomes half a character, so that the line it stands on can be named."""
    opened: Any = gzip.open if path.suffix.lower() == ".gz" else open
    with opened(path, "rb") as file:
        begin = file.read(LONGEST)
        check_signature(path, begin)
        if begin.startswith(UTF16) or (len(begin) > 1 and 0 in begin[:2]):  # without a mark, one of its first two bytes is NUL
            raise DataError(f"{path} is UTF-16, not UTF-8 text.", "Save it as UTF-8.")
    return opened(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="")


def _jsonl(file: TextIO, path: Path, bad: OnBadRow) -> Iterator[Row]:
    lines, decoder = Lines(file, path, bad), StrictJson()
    for line in lines:
        if line.isspace():
            continue
        if lines.number == 1 and line.lstrip().startswith("["):
            raise DataError(
                f"{lines.where} begins a list: the file is one JSON list, not an object a line.",
                'Give its name the ending .json; or, if every line is a list of messages, write {"messages": […]} a line.',
            )
        try:
            row = Row(_object(_parse(line, decoder, lines.where), lines.where), lines.where)
        except RowError as error:
            bad(error)
            continue
        del line  # one row may be as large as all others together
        yield row


def _parse(line: str, decoder: StrictJson, where: str) -> Any:
    if not is_utf8(line):
        raise RowError(f"{where} is not UTF-8 text.", "Save the file as UTF-8.")
    try:
        value = decoder.decode(line.removeprefix(BOM))  # files put together bring theirs along
        reason = decoder.problem
    except json.JSONDecodeError as error:
        reason = _mistake(line, error)
    except RecursionError:
        reason = "nested too deeply"
    except ValueError:  # Python reads no number of more than 4,300 digits
        reason = "a number has thousands of digits"
    if reason:
        raise RowError(f"{where} is not JSON: {reason}.", "Write one JSON object a line.")
    return value


def _mistake(line: str, error: json.JSONDecodeError) -> str:
    """What is wrong with a line, as far as that can be guessed from it."""
    if "\0" in line:
        return "it holds NUL characters, as UTF-16 text does"
    if line.lstrip().startswith("{'"):
        return "its quotes are single ones, as Python prints them, and JSON's are double"
    if error.msg == "Extra data" and line[error.pos :].strip() == ",":
        return "a comma stands behind the object, as in a list"
    return error.msg


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
            if "\n" in error.doc[: error.pos].strip():
                raise DataError(
                    f"{path} line {error.lineno}: another value begins where the file should end.",
                    "Write all objects into one list, or each on one line.",
                ) from error
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
            if value is TOO_LONG:
                raise too_long(where)
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
        raise DataError(f"{path} holds {kind_of(content)}, not a list of rows.", "Write a list of objects.")
    lists = {key: value for key, value in content.items() if isinstance(value, list)}
    spoken = any(_is_message(value[0]) for value in lists.values() if value)
    if not spoken and len(lists) > 1:
        _refuse_lists(lists, path)
    if content and all(isinstance(value, dict) for value in content.values()):
        raise DataError(
            f"{path} holds an object of objects ({listed(content)}), not a list of rows.",
            "Write a list of objects, each with all columns of its row (in pandas: orient='records').",
        )
    return [content] if spoken or len(lists) != 1 else next(iter(lists.values()))


def _is_message(item: Any) -> bool:
    """Whether a list that begins with this is a conversation, not rows, which may well have a column ``from`` or ``role``."""
    return isinstance(item, dict) and any(keys <= item.keys() for keys in MESSAGES)


def _refuse_lists(lists: dict[str, list[Any]], path: Path) -> None:
    """Raises DataError for an object of several lists, in which no rows can be told."""
    rows = [key for key, value in lists.items() if value and all(isinstance(item, dict) for item in value)]
    if len(rows) > 1:
        raise DataError(f"{path} holds several lists of rows: {listed(rows)}.", "Write each into a file of its own.")
    if not rows and len({len(value) for value in lists.values()}) == 1:
        raise DataError(
            f"{path} holds a list for each column ({listed(lists)}), not a list of rows.",
            "Write a list of objects, each with all columns of its row.",
        )


def _object(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, list) and value and _is_message(value[0]):
        raise RowError(f"{where} is a list of messages, not an object.", 'Write {"messages": […]}, the list inside.')
    if not isinstance(value, dict):
        raise RowError(f"{where} is {'null' if value is None else kind_of(value)}, not an object.", ROW_EXAMPLE)
    return value
