"""A row of a data set, before anyone knows what its columns mean."""

from dataclasses import dataclass
from typing import Any

from tunesmith.errors import RowError

ROW_LIMIT = 2**22
"""Characters of the longest row that is read: about a million tokens, more than can be trained on at once."""


@dataclass(frozen=True)
class Row:
    """values: column to value. where: file and line (or row number) as a user would say it. note: with the first row of a file,
    what the user should know of how the file was read."""

    values: dict[str, Any]
    where: str
    note: str = ""


def too_long(where: str) -> RowError:
    """The error for a row beyond `ROW_LIMIT`."""
    return RowError(
        f"{where} is longer than {ROW_LIMIT:,} characters, more than can be trained on at once.",
        "Split the row, or take columns out that are not read.",
    )
