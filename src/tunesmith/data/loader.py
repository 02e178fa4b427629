"""The order of rows: which go into which micro-batch of which update, epoch by epoch, from the seed alone."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise

import numpy as np

from tunesmith.data.packing import Document, Ints, Pack, PackedRows, documents, lay_flat, make_pack
from tunesmith.data.prefix import Group, saved, share
from tunesmith.data.render import Example

ROWS, TOKENS, UPDATES = 32, 4096, 24
"""Defaults of a micro-batch: at most so many rows and tokens (matrix products gain little beyond), and not so many that
the run makes fewer updates than this."""
SAMPLED = 64
"""Updates of an epoch that stand for all of them where the packs of all would take long to make."""


def default_batch_size(rows: int, row_tokens: int, epochs: float, accumulation: int) -> int:
    """Packed rows a micro-batch when the user names no number. row_tokens: that are computed for a row, as
    `computed_tokens` counts them."""
    for_updates = math.ceil(rows * epochs / (UPDATES * accumulation))
    return max(1, min(ROWS, TOKENS // row_tokens, for_updates))


def default_split(batch_size: int, max_length: int) -> int:
    """Micro-batches that so many rows fall into when their prefixes are not shared: equal ones, within ``TOKENS``."""
    fits = (n for n in range(1, batch_size + 1) if batch_size % n == 0 and batch_size // n * max_length <= TOKENS)
    return next(fits, batch_size)


def computed_tokens(rows: Sequence[Sequence[Example]], max_length: int) -> int:
    """Tokens computed for a row of ``max_length`` where ``ROWS`` rows share their prefixes, from rows all over the data."""
    some = [rows[i] for i in np.linspace(0, len(rows) - 1, min(ROWS, len(rows))).astype(int).tolist()]
    fewer = saved(share([document.ids for document in documents(some)]))
    return max(1, max_length - fewer // len(some))


@dataclass(frozen=True)
class Loader:
    """Packs of an epoch.

    rows: packed rows. batch_size: rows a pack. accumulation: packs an update, or fewer where sharing prefixes lets more rows
    into a pack. shuffle: a new order each epoch. more: of rows that are streamed, all shards from this number on; ``rows`` are
    then those of the first.
    """

    rows: Sequence[Sequence[Example]]
    batch_size: int
    accumulation: int = 1
    shuffle: bool = True
    seed: int = 42
    shared_prefix: bool = True
    more: Callable[[int], Iterator[Sequence[Sequence[Example]]]] | None = None

    def shards(self, start: int = 0) -> Iterator[tuple[int, "Loader"]]:
        """The parts of an epoch from this number on, each with its number: the loader itself, unless rows are streamed."""
        if self.more is None:
            yield 0, self
            return
        for number, rows in enumerate(self.more(start), start):
            if len(rows):
                yield number, replace(self, rows=rows, more=None)

    def first_pack(self) -> Pack:
        """The first pack of all. Raises StopIteration if no row has anything to learn."""
        return next(packs[0] for packs in self.epoch(0) if packs)

    @property
    def updates_per_epoch(self) -> int:
        """Updates of an epoch, of a stream's first shard."""
        return math.ceil(len(self.rows) / (self.batch_size * self.accumulation))

    def share(self, updates: int) -> float:
        """The share of an epoch that so many updates are; 0 for a stream, whose end nobody knows."""
        return updates / self.updates_per_epoch if self.more is None else 0.0

    def epoch(self, number: int, start: int = 0) -> Iterator[list[Pack]]:
        """The packs of each update of an epoch, in order, without the first ``start``."""
        return map(self._packs, islice(self._windows(number), start, None))

    def sample(self, most: int = SAMPLED) -> list[list[Pack]]:
        """The packs of some updates of the first epoch, spread over it, that with most tokens among them."""
        windows = list(self._windows(0))
        lengths = row_lengths(self.rows)
        largest = max(range(len(windows)), key=lambda i: int(lengths[windows[i]].sum()))
        spread = np.linspace(0, len(windows) - 1, min(most, len(windows))).astype(int).tolist()
        return [self._packs(windows[i]) for i in sorted({largest, *spread})]

    def _windows(self, number: int) -> Iterator[list[int]]:
        """The rows each update reads."""
        order = list(range(len(self.rows)))
        if self.shuffle:
            random.Random(f"{self.seed}/{number}").shuffle(order)
        window = self.batch_size * self.accumulation
        return (order[start : start + window] for start in range(0, len(order), window))

    def _packs(self, window: Sequence[int]) -> list[Pack]:
        micro = [[self.rows[i] for i in window[at : at + self.batch_size]] for at in range(0, len(window), self.batch_size)]
        packs = regroup(micro) if self.shared_prefix and len(micro) > 1 else None
        packs = packs or [make_pack(rows, self.shared_prefix) for rows in micro]
        return [pack for pack in packs if len(pack.targets)]


def regroup(micro: Sequence[Sequence[Sequence[Example]]]) -> list[Pack] | None:
    """The documents of an update in as few packs as go, those that share a prefix together; None where that saves nothing.

    No pack has more tokens than the largest of the given micro-batches had without sharing, so that memory keeps what it was
    planned for. The update is the same: its loss is a sum over all documents, whichever pack they are in.
    """
    chosen = documents([row for rows in micro for row in rows])
    groups = share([document.ids for document in chosen])
    if not saved(groups):
        return None
    room = max(sum(len(example.input_ids) for row in rows for example in row) for rows in micro)
    total = sum(len(document.ids) for document in chosen) - saved(groups)
    for count in range(math.ceil(total / room), len(micro) + 1):
        parts = _parts(chosen, groups, count)
        packs = [lay_flat(part, sum(d.tokens for d in part)) for part in parts]
        if all(len(pack.input_ids) <= room for pack in packs):
            break
    else:
        return None
    if len(packs) == len(micro) and _size(packs) >= _size([make_pack(rows) for rows in micro]):
        return None
    return packs


def _parts(chosen: Sequence[Document], groups: Sequence[Group], count: int) -> list[list[Document]]:
    """The documents, group after group, in so many parts of about the same number of computed tokens."""
    ordered = [chosen[i] for group in groups for i in group.members]
    costs = [len(chosen[i].ids) - (group.prefix if place else 0) for group in groups for place, i in enumerate(group.members)]
    reached = np.cumsum(costs)
    bounds = [0, *np.searchsorted(reached, reached[-1] * np.arange(1, count) / count).tolist(), len(ordered)]
    return [ordered[a:b] for a, b in pairwise(bounds) if a < b]


def _size(packs: Sequence[Pack]) -> int:
    return sum(len(pack.input_ids) for pack in packs)


def row_lengths(rows: Sequence[Sequence[Example]]) -> Ints:
    """Tokens of each row, int64 ``[rows]``."""
    if isinstance(rows, PackedRows):
        return np.add.reduceat(rows.examples.lengths[rows.rows.order], rows.rows.starts[:-1])
    return np.array([sum(len(example.input_ids) for example in row) for row in rows], dtype=np.int64)
