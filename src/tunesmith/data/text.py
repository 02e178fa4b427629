"""What counts as text in a cell or a message."""

from collections.abc import Iterable
from typing import Any

from tunesmith.data.row import ROW_LIMIT, too_long
from tunesmith.errors import RowError


def text_of(value: Any, where: str) -> str:
    """The value, if it is text. Raises RowError, beginning with ``where``."""
    if not isinstance(value, str):
        number = " (a number in quotes)" if type(value) in (int, float) else ""
        raise RowError(f"{where} is {kind_of(value)}, not text.", f"Give it text{number} or remove the row.")
    if len(value) > ROW_LIMIT:
        raise too_long(where)
    if "\0" in value:
        raise RowError(f"{where} holds a NUL character, which no text has.", "Remove it, or remove the row.")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise RowError(
            f"{where} holds half a character (a lone surrogate, or a byte that is not UTF-8).", "Mend the text or remove the row."
        )
    return value


KINDS = {
    bool: "true or false", int: "a number", float: "a number", str: "text", bytes: "bytes", list: "a list", dict: "an object",
}  # fmt: skip


def kind_of(value: Any) -> str:
    """What a value is, in words."""
    if value is None or value == []:
        return "empty"
    return KINDS.get(type(value), f"a {type(value).__name__}")


def listed(names: Iterable[str], most: int = 12) -> str:
    """Names with commas between them, spelled so that any terminal can show them; of very many the first, and how many more
    there are."""
    every = [name if name.isprintable() else repr(name)[1:-1] for name in (name or "(no name)" for name in names)]
    more = f" and {len(every) - most:,} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more
