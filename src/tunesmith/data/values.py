"""What the values of a column are: text, lists of messages, or such lists written out as text."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from tunesmith.data.messages import READ, SPEAKERS, in_rows, turns_of
from tunesmith.data.row import Row
from tunesmith.data.text import listed
from tunesmith.data.text_files import ROW_EXAMPLE
from tunesmith.data.tool_calls import json_of
from tunesmith.errors import DataError, RowError

SPEAKER = rf"['\"](?:{'|'.join(SPEAKERS)})['\"]"
WRITTEN = tuple(
    (re.compile(rf"\A\s*{begin}"), re.compile(rf"[{{,]\s*['\"]{who}['\"]\s*:\s*{item}{SPEAKER}"),
     re.compile(rf"[{{,]\s*['\"]{what}['\"]\s*:"))
    for begin, item in ((r"\[\s*\{", ""), (r"\{", r"\[\s*"))
    for who, what in (("role", "content"), ("from", "value"))
)  # fmt: skip
"""What a list of messages, or an object of lists, has in it as text, be it JSON or as Python prints it."""


def are_text(rows: Iterable[Row], column: str) -> bool:
    """Whether the first value there is in this column is text, or there is none yet."""
    return isinstance(first_value(rows, column), str)


def first_value(rows: Iterable[Row], column: str) -> Any:
    """The first value there is in this column; an empty text if there is none yet."""
    return next((v for row in rows if (v := row.values.get(column)) is not None), "")


def are_turns(rows: Iterable[Row], column: str) -> bool:
    """Whether a value there is in this column is a list of pairs of texts, or there is none yet. A single bad one says nothing."""
    filled = [(value, row.where) for row in rows if (value := row.values.get(column)) not in (None, "", [], "[]")]
    return not filled or any(_is_list_of_turns(*one, column) for one in filled)


def _is_list_of_turns(value: Any, where: str, column: str) -> bool:
    try:
        return bool(turns_of(value, where, column))
    except RowError:
        return False


def are_written_messages(rows: Iterable[Row], column: str) -> bool:
    """Whether most texts of this column are lists of messages: it is all csv can hold. Of single ones nobody knows whether the text
    itself is meant (an answer to "Write a chat as JSON")."""
    texts = [value for row in rows if isinstance(value := row.values.get(column), str) and value.strip()]
    begun = [text for text in texts if begins_as_messages(text)]
    return 2 * len(begun) > len(texts) and any(text.rstrip().endswith(("]", "}")) for text in begun)


def begins_as_messages(text: str) -> bool:
    """Whether a text begins as a list of messages does that is written out, whole or not."""
    return any(all(sign.search(text) for sign in signs) for signs in WRITTEN)


def unread_keys(rows: Sequence[Row], column: str | None) -> list[str]:
    """Keys of messages that nothing is done with, as ``column: key``."""
    lists = [value for row in rows if column and isinstance(value := in_rows(row.values.get(column)), list)]
    found = dict.fromkeys(key for value in lists for message in value if isinstance(message, dict) for key in message)
    return [f"{column}: {key}" for key in found if key not in READ]


def speaks(rows: Sequence[Row], column: str) -> str | None:
    """``role`` or ``from``, if this column holds lists of messages."""
    first = first_message(rows, column)
    return next((key for key in ("role", "from") if key in first), None)


def first_message(rows: Sequence[Row], column: str) -> dict[str, Any]:
    """What the first value there is in this column begins with, if that is a list of objects or one as JSON; else nothing. Text
    that begins as a list does and is none, which may be one bad row or a matter of style, leaves it to the next row."""
    for row in rows:
        value: Any = row.values.get(column)
        if isinstance(value, str) and value.lstrip().startswith("["):
            try:
                value = json_of(value, row.where)
            except RowError:
                continue
        if value := in_rows(value):
            return value[0] if isinstance(value, list) and isinstance(value[0], dict) else {}
    return {}


def are_speakers(rows: Sequence[Row], column: str) -> bool:
    """Whether this column says who speaks, in every row that says anything in it."""
    named = [value for row in rows if (value := row.values.get(column)) is not None]
    return bool(named) and all(isinstance(name, str) and name in SPEAKERS for name in named)


def check_texts(rows: Sequence[Row], there: list[str], name: str) -> None:
    """Raises DataError for rows in which no column holds text, so that none can be named: where an object holds the columns."""
    texts = [column for column in there if are_text(rows, column)]
    if not there:
        raise DataError(f"The rows of {name} are empty objects.", ROW_EXAMPLE)
    boxes = [column for column in there if isinstance(first_value(rows, column), dict)]
    if boxes and len(texts) < 2:
        raise DataError(
            f"{name} ({listed(there)}) has its columns inside of {boxes[0]!r}, which holds objects "
            f"({listed(first_value(rows, boxes[0]))}).",
            "Write those objects as the rows.",
        )
