"""What counts as text in a cell or a message."""

from typing import Any

from tunesmith.data.row import ROW_LIMIT, too_long
from tunesmith.errors import RowError


def text_of(value: Any, where: str) -> str:
    """The value, if it is text. Raises RowError, beginning with ``where``."""
    if not isinstance(value, str):
        raise RowError(f"{where} is {kind_of(value)}, not text.", "Give it text or remove the row.")
    if len(value) > ROW_LIMIT:
        raise too_long(where)
    if "\0" in value:
        raise RowError(f"{where} holds a NUL character, which no text has.", "Remove it, or remove the row.")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise RowError(
            f"{where} holds half a character (a lone surrogate, or a byte that is not UTF-8).", "Mend the text or remove the row."
        )
    return value


def kind_of(value: Any) -> str:
    """What a value is, in words."""
    return "empty" if value is None or value == [] else f"a {type(value).__name__}"
