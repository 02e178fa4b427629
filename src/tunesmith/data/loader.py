"""The order of rows: which go into which micro-batch of which update, epoch by epoch, from the seed alone."""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tunesmith.data.packing import Pack, make_pack
from tunesmith.data.render import Example

ROWS, TOKENS, UPDATES = 32, 4096, 24
"""Defaults of a micro-batch: at most so many rows and tokens (matrix products gain little beyond), and not so many that
the run makes fewer updates than this."""


def default_batch_size(rows: int, max_length: int, epochs: float, accumulation: int) -> int:
    """Packed rows a micro-batch when the user names no number."""
    for_updates = math.ceil(rows * epochs / (UPDATES * accumulation))
    return max(1, min(ROWS, TOKENS // max_length, for_updates))


@dataclass(frozen=True)
class Loader:
    """Packs of an epoch.

    rows: packed rows. batch_size: rows a pack. accumulation: packs an update. shuffle: a new order each epoch.
    """

    rows: Sequence[Sequence[Example]]
    batch_size: int
    accumulation: int = 1
    shuffle: bool = True
    seed: int = 42
    shared_prefix: bool = True

    @property
    def updates_per_epoch(self) -> int:
        return math.ceil(len(self.rows) / (self.batch_size * self.accumulation))

    def epoch(self, number: int) -> Iterator[list[Pack]]:
        """The packs of each update of an epoch, in order."""
        order = list(range(len(self.rows)))
        if self.shuffle:
            random.Random(f"{self.seed}/{number}").shuffle(order)
        window = self.batch_size * self.accumulation
        for start in range(0, len(order), window):
            chosen = order[start : start + window]
            micro = [chosen[i : i + self.batch_size] for i in range(0, len(chosen), self.batch_size)]
            packs = [make_pack([self.rows[i] for i in indices], self.shared_prefix) for indices in micro]
            yield [pack for pack in packs if len(pack.targets)]
