"""The data sets of a recipe: one, several, or a mixture with weights."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from os.path import expanduser
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.advice import ColumnsError
from tunesmith.data.bad_rows import OnBadRow
from tunesmith.data.columns import LOOKED_AT, Columns, find_columns
from tunesmith.data.conversation import Conversation
from tunesmith.data.formats import conversations
from tunesmith.data.row import Row
from tunesmith.data.sources import iter_rows, left_out
from tunesmith.data.text import listed
from tunesmith.errors import DataError
from tunesmith.mixed_data import COLUMNS, MixedData
from tunesmith.recipe import Recipe

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """One data set. split, config: of a hub or saved one. weight: how often its rows are used in an epoch. named: columns the
    user named, and the format, as `find_columns` takes them. in_entry: whether it is an entry of a mixture that names them."""

    name: str
    split: str = "train"
    config: str | None = None
    weight: float = 1.0
    named: dict[str, Any] = field(default_factory=dict)
    in_entry: bool = False

    def open(self, limit: int | None, bad: OnBadRow) -> "OpenPart":
        """Find its columns; its conversations are then read one by one.

        Args:
            limit: read at most so many rows. bad: told of rows at fault.

        Raises:
            DataError: see `iter_rows` and `find_columns`.
        """
        rows = iter_rows(self.name, self.split, self.config, limit, bad)
        seen = list(islice(rows, LOOKED_AT))
        columns = self._columns(seen)
        told: list[str] = []
        made = self._weighted(conversations(chain(seen, rows), columns, bad, told.append))
        return OpenPart(self, columns, made, tuple(left_out(self.name, self.split)), told)

    def _columns(self, seen: Sequence[Row]) -> Columns:
        try:
            return replace(find_columns(seen, self.name, **self.named), in_entry=self.in_entry)
        except ColumnsError as error:
            if not self.in_entry:
                raise
            raise error.for_entry() from error

    def _weighted(self, made: Iterator[Conversation]) -> Iterator[Conversation]:
        return made if self.weight == 1 else (replace(conversation, weight=self.weight) for conversation in made)


@dataclass(frozen=True)
class OpenPart:
    """A data set whose columns are known, and its conversations, to be read once. left_out: what else its folder holds. told: what
    the user should know of the rows read so far."""

    part: Part
    columns: Columns
    conversations: Iterator[Conversation]
    left_out: tuple[str, ...] = ()
    told: Sequence[str] = ()

    def describe(self) -> str:
        """How rows are read, and which files are not, in one line."""
        return self.columns.describe() + (f"; files not read: {listed(self.left_out)}" if self.left_out else "")


def parts_of(recipe: Recipe) -> list[Part]:
    """The data sets a recipe names."""
    if recipe.datasets:
        return [_mixed(entry, recipe) for entry in recipe.datasets]
    named = {**{name: getattr(recipe, name) for name in COLUMNS}, "format": recipe.dataset_format}
    return [Part(name, recipe.dataset_split, recipe.dataset_config, 1.0, named) for name in names_of(recipe.dataset_name)]


def names_of(name: str) -> list[str]:
    """One name, or several with commas between them."""
    names = [part.strip() for part in name.split(",")]
    return [name] if len(names) == 1 or Path(expanduser(name)).exists() else [part for part in names if part] or [name]


def _mixed(entry: MixedData, recipe: Recipe) -> Part:
    named = entry.model_dump(include=set(COLUMNS))
    return Part(entry.path, entry.split or recipe.dataset_split, entry.subset, entry.weight, {**named, "format": entry.type}, True)


@dataclass(frozen=True)
class Opened:
    """The data sets of a recipe, ready to be read, once, one after another."""

    parts: Sequence[OpenPart]

    @property
    def columns(self) -> Columns:
        """Of the first data set."""
        return self.parts[0].columns

    @property
    def conversations(self) -> Iterator[Conversation]:
        return chain.from_iterable(part.conversations for part in self.parts)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the rows read so far."""
        return tuple(chain.from_iterable(part.told for part in self.parts))

    def describe(self) -> str:
        """How rows are read, in one line."""
        if len(self.parts) == 1 and self.parts[0].part.weight == 1:
            return self.parts[0].describe()
        return " | ".join(f"{one.part.name} × {one.part.weight:g}: {one.describe()}" for one in self.parts)


def open_data(recipe: Recipe, bad: OnBadRow) -> Opened:
    """Find the columns of every data set of a recipe. Raises DataError as `Part.open`."""
    return Opened([part.open(recipe.max_rows, bad) for part in parts_of(recipe)])


def times(weights: Floats, seed: int) -> Ints:
    """How often each conversation is used in an epoch: as its weight says. Of a fraction, that share of the conversations with
    this weight is used once more, drawn by seed.

    Args:
        weights: ``[n]``, above 0.
    """
    whole = np.floor(weights).astype(np.int64)
    draw = np.random.default_rng(seed)
    for weight in np.unique(weights):
        alike = np.flatnonzero(weights == weight)
        more = round(float(weight - np.floor(weight)) * len(alike))
        whole[draw.permutation(alike)[:more]] += 1
    return whole


def check_used(weights: Floats, uses: Ints) -> None:
    """Raises DataError if a weight is so small that none of its conversations is used. Both ``[n]``, as `times` has them."""
    for weight in np.unique(weights):
        alike = weights == weight
        if not uses[alike].any():
            raise DataError(
                f"The weight {weight:g} leaves none of the {alike.sum():,} rows that it is given for.",
                "Raise it, or take the data set out.",
            )
