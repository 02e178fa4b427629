"""Settings that would read rows, as a user is to write them: flags of a command, or keys of a mixture's entry."""

import re
import shlex
from collections.abc import Iterable, Mapping

from tunesmith.errors import DataError
from tunesmith.mixed_data import as_keys

WHICH = "COLUMN"
"""Stands for a column that only the user knows."""


def as_flags(settings: Mapping[str, str]) -> str:
    """``--prompt ask --completion said``, as a shell takes it."""
    return " ".join(f"--{name.replace('_', '-')} {shlex.quote(value)}" for name, value in settings.items())


def in_entry_of(settings: Mapping[str, str]) -> str:
    """```prompt: ask, completion: said` in its entry of datasets``."""
    return f"`{as_keys(settings)}` in its entry of datasets"


def headless(columns: Iterable[str]) -> str:
    """What to do if what was taken for columns' names is a row: something in it ends as a sentence does. Nothing otherwise."""
    said = any(re.search(r"[.?!]\s*$", column) for column in columns)
    return "If the first line is a row and no header, write one above it, such as prompt,completion." if said else ""


class ColumnsError(DataError):
    """The columns do not say, or are not those that were said. settings: of a recipe that reads them, `WHICH` where only the
    user knows. mend: what to do to the data themselves, if that helps too. in_entry: whether a mixture's entry named the data."""

    def __init__(
        self, what: str, settings: Mapping[str, str], fix: str = "Name the columns you mean", mend: str = "",
        in_entry: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(what, f"{mend} {fix}: {(in_entry_of if in_entry else as_flags)(settings)}.".lstrip())
        self.settings, self.mend, self._fix = dict(settings), mend, fix

    @property
    def certain(self) -> dict[str, str]:
        """The settings, if they alone will do: none stands for a column that only the user knows, and the data can stay."""
        return {} if self.mend or WHICH in self.settings.values() else self.settings

    def for_entry(self) -> "ColumnsError":
        """The same of data that a mixture's entry names: its keys say how they are read, and no flag does."""
        return ColumnsError(self.what, self.settings, self._fix, self.mend, in_entry=True)

    def without_settings(self, others: str) -> DataError:
        """The same of data that are read beside ``others``, whose columns the settings name."""
        return DataError(self.what, self.mend or f"Call its columns as {others} do, or prompt and completion.")
