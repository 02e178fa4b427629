"""The sizes that packs are padded to on a GPU, so that a few captured steps serve all of them.

What a pack is padded to depends on it and on the run's first pack alone, not on the packs between: sums of other lengths have
another last digit, and a run that was stopped is to go on to the very same adapter.
"""

import math
from dataclasses import dataclass

from tunesmith.data.packing import Pack, pad_pack
from tunesmith.kernels.segments import Documents

ROOM = 0.03
"""Share by which the first rung has more tokens than the first pack."""
STEP = 0.1
"""Share by which a rung has more tokens than the one below it."""
LABELS = 3
"""Times so much for labels, which cost the head alone: fewer pairs of rungs, so fewer captured steps."""


@dataclass(frozen=True)
class Sizes:
    """tokens, labels: lengths of a pack's arrays. blocks: rows of its attention tables. like: the documents that the tile of
    its attention is chosen for."""

    tokens: int
    labels: int
    blocks: int
    like: Documents

    def pad(self, pack: Pack) -> Pack:
        """The pack in these sizes: same loss, same gradient."""
        return pad_pack(pack, self.tokens, self.labels, self.blocks, self.like)


@dataclass(frozen=True)
class Ladder:
    """Rungs a fixed share apart, through sizes a little above those of a run's first pack. tokens, labels: its own, like: its
    documents."""

    tokens: int
    labels: int
    like: Documents

    @staticmethod
    def through(first: Pack) -> "Ladder":
        return Ladder(len(first.input_ids), len(first.targets), first.segments.documents)

    def sizes(self, pack: Pack) -> Sizes:
        """The lowest rungs that hold a pack; exactly its own where they are the first pack's, as in rows that are all alike."""
        tokens, labels, count = len(pack.input_ids), len(pack.targets), len(pack.segments.lengths)
        if pack.segments.documents != self.like:
            tokens = _rung(tokens, self.tokens * (1 + ROOM), 1 + STEP)
            count = 4 ** math.ceil(math.log(count, 4))
        if (tokens, labels) != (self.tokens, self.labels):
            labels = _rung(labels, self.labels * (1 + LABELS * ROOM), 1 + LABELS * STEP)
        return Sizes(tokens, labels, tokens // 16 + count + 2, self.like)


def _rung(count: int, first: float, ratio: float) -> int:
    """The smallest ``⌈first · ratioᵏ⌉`` of any integer k that is at least count."""
    k = math.ceil(math.log(count / first, ratio) - 1e-9)
    return max(count, math.ceil(first * ratio**k))
