"""What becomes of examples in rows of ``max_length``."""

from dataclasses import dataclass

import numpy as np

from tunesmith.data.examples import Examples
from tunesmith.data.packing import PackedRows, pack_rows


@dataclass(frozen=True, eq=False)
class CutRows:
    """rows: packed, of the examples that keep something to train. cut: examples that are cut. lost: answer tokens that this
    loses."""

    rows: PackedRows
    cut: int
    lost: int

    @property
    def tokens(self) -> int:
        """In all rows."""
        return int(self.rows.examples.lengths.sum())

    @property
    def trained(self) -> int:
        """Of these, those that are trained."""
        return int(self.rows.examples.counts.sum())


def cut_and_pack(whole: Examples, strategy: str, max_length: int) -> CutRows:
    """Examples cut to ``max_length`` and packed, as `pack_rows` names the strategies."""
    kept = whole if strategy == "wrapped" else whole.cut(max_length)
    rows = pack_rows(kept.take(np.flatnonzero(kept.counts)), strategy, max_length)
    return CutRows(rows, int((kept.lengths < whole.lengths).sum()), int((whole.counts - kept.counts).sum()))
