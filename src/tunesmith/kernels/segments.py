"""How a flat pack falls into documents: segments, and the forms in which attention wants to know them."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

CPU = torch.device("cpu")
Documents = tuple[tuple[int, ...], tuple[int, ...]]
"""Lengths and parents of segments."""
PADDING_TOLERANCE = 2.0
"""A bucket's longest document may be this much longer than its shortest: more buckets cost calls, fewer cost padding."""


@dataclass(frozen=True)
class Bucket:
    """Consecutive documents of the flat array that share a prefix and have like lengths.

    tokens: their slice of the flat array. count: n. length: S. valid: flat slots of ``n * S`` that hold a token, int64
    ``[tokens]``; source: for every slot a token of the slice to fill it, int64 ``[n * S]``; both None when every document has
    length S. prefix: the slice of the flat array they all continue.
    """

    tokens: slice
    count: int
    length: int
    valid: Tensor | None
    source: Tensor | None
    prefix: slice | None


@dataclass(frozen=True)
class Segments:
    """How the ``[T]`` tokens of a pack fall into documents. lengths: of each segment in flat order. parents: for each
    segment the index of the earlier segment it continues, or -1. device: where attention will run. On a GPU, so that packs
    with other documents can take one another's place in a CUDA graph: blocks, rows to pad the kernels' tables to, and like,
    documents whose tile is taken."""

    lengths: tuple[int, ...]
    parents: tuple[int, ...]
    device: torch.device = CPU
    blocks: int | None = None
    like: Documents | None = None

    @property
    def documents(self) -> Documents:
        return self.lengths, self.parents

    @staticmethod
    def of(lengths: Sequence[int], parents: Sequence[int] | None = None, device: torch.device | str = "cpu") -> "Segments":
        parents = tuple(parents) if parents is not None else (-1,) * len(lengths)
        return Segments(tuple(lengths), parents, torch.device(device))

    @cached_property
    def buckets(self) -> tuple[Bucket, ...]:
        """Segments by like length and prefix, for the path that pads."""
        lengths, parents = self.lengths, self.parents
        starts = [0, *itertools.accumulate(lengths)]
        buckets, first = [], 0
        while first < len(lengths):
            last = first + 1
            low = high = lengths[first]
            while last < len(lengths) and parents[last] == parents[first]:
                low, high = min(low, lengths[last]), max(high, lengths[last])
                if high > PADDING_TOLERANCE * low:
                    break
                last += 1
            parent = parents[first]
            prefix = slice(starts[parent], starts[parent] + lengths[parent]) if parent >= 0 else None
            buckets.append(_bucket(lengths[first:last], starts[first], prefix, self.device))
            first = last
        return tuple(buckets)

    def layout(self, head_dim: int, dtype: torch.dtype) -> Any:
        """The tables of the fused kernels (`fused.attention_layout.Layout`) for heads of this size and type."""
        from tunesmith.kernels.fused.attention_layout import layout
        from tunesmith.kernels.fused.attention_tiles import choose_block, largest_block

        largest = largest_block(head_dim, dtype, self.device)
        if largest not in self._layouts:
            block = choose_block(*(self.like or self.documents), largest)
            self._layouts[largest] = layout(self.lengths, self.parents, self.device, block, self.blocks)
        return self._layouts[largest]

    def load(self, other: "Segments") -> None:
        """Let the fused kernels' tables that were made here hold another pack's, of the same sizes."""
        from tunesmith.kernels.fused.attention_layout import layout

        for mine in self._layouts.values():
            mine.load(layout(other.lengths, other.parents, "cpu", mine.block, self.blocks))

    @cached_property
    def _layouts(self) -> dict[int, Any]:
        return {}


def _bucket(lengths: Sequence[int], start: int, prefix: slice | None, device: torch.device | str) -> Bucket:
    padded, size = max(lengths), torch.tensor(lengths)
    valid = source = None
    if min(lengths) != padded:
        place = torch.arange(padded)
        first = size.cumsum(0) - size
        valid = (place < size[:, None]).flatten().nonzero()[:, 0].to(device)
        # Past its end a document's last token is repeated: nothing that counts looks there, so any number will do.
        source = (first[:, None] + place.minimum(size[:, None] - 1)).flatten().to(device)
    return Bucket(slice(start, start + sum(lengths)), len(lengths), padded, valid, source, prefix)


def segment_positions(segments: Segments) -> Tensor:
    """Position of every token in its own document, prefix included, int64 ``[T]``."""
    ranges = []
    for length, parent in zip(segments.lengths, segments.parents):
        start = segments.lengths[parent] if parent >= 0 else 0
        ranges.append(torch.arange(start, start + length))
    return torch.cat(ranges)
