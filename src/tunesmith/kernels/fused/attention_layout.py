"""Which program of `attention` works on what: tables from the lengths of a pack's segments, made once a pack.

A block is a run of tokens of one segment. Its row of a table says where it lies and what it reads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]

PARTS = 64
"""Programs a head may spend on sharing the work at prefixes, whose keys hear from every child."""
PART_TILES = 8
"""Tiles of children that are worth a program of their own."""


@dataclass(frozen=True)
class Layout:
    """Who works on what: tables of int32 on the device, one program (a head) a row, most work first. Rows of zeros idle.

    queries ``[*, 6]``: first token and end of a block of queries, start of its segment, start and end of its prefix; whether the
    block is alone, a segment of one block that neither has a prefix nor is one.
    keys ``[*, 8]``: first token and end of a block of keys; start and end of the queries of its own segment that the row
    takes; start and end of its children that the row takes; where its sums go if rows share the block (a slot), or -1;
    whether it is alone.
    joins ``[*, 4]``: first token and end of a block of keys that rows share; its first slot and the end of its slots.
    positions ``[T]``: of each token in its document, prefix included.
    """

    block: int
    parts: int
    data: Tensor
    queries: Tensor
    keys: Tensor
    joins: Tensor
    positions: Tensor

    def load(self, other: "Layout") -> None:
        """Take over another pack's tables (on any device) where these lie, for a CUDA graph that reads them here."""
        assert (self.block, self.parts, self.queries.shape) == (other.block, other.parts, other.queries.shape)
        self.data.copy_(other.data, non_blocking=True)


def layout(
    lengths: Sequence[int],
    parents: Sequence[int],
    device: torch.device | str,
    block: int,
    blocks: int | None = None,
    parts: int = PARTS,
) -> Layout:
    """Tables for segments as in `kernels.attention.Segments`, a prefix's children being side by side.

    Args:
        blocks: rows to pad the tables to, so that packs of as many tokens share their sizes and with them a CUDA graph.
        parts: most programs that share the work at prefixes; 0 if there is never a prefix.
    """
    runs = _runs(lengths, parents, block)
    cut = _Blocks.of(runs, block)
    queries = _query_rows(runs, cut, block)
    keys, joins, shared = _key_rows(runs, cut, block, parts)
    positions = np.arange(runs.end[-1]) - np.repeat(runs.start - (runs.prefix_end - runs.prefix), runs.end - runs.start)
    if blocks is not None:
        assert len(queries) <= blocks
        queries, keys, joins = _pad(queries, blocks), _pad(keys, blocks + parts), _pad(joins, parts // 2)
    else:
        parts = shared
    tables = [queries, keys, joins, positions]
    data = torch.from_numpy(np.concatenate([table.ravel() for table in tables]).astype(np.int32)).to(device)
    views = [part.view(table.shape) for part, table in zip(data.split([table.size for table in tables]), tables)]
    return Layout(block, parts, data, *views)


@dataclass(frozen=True)
class _Runs:
    """The segments as arrays ``[n]``: where each lies, the prefix that it continues, its children (empty runs where there is
    none), how many blocks it has, and whether it is alone."""

    start: Ints
    end: Ints
    prefix: Ints
    prefix_end: Ints
    heirs: Ints
    heirs_end: Ints
    count: Ints
    alone: NDArray[np.bool_]


def _runs(lengths: Sequence[int], parents: Sequence[int], block: int) -> _Runs:
    size, parent = np.array(lengths, dtype=np.int64), np.array(parents, dtype=np.int64)
    assert (parent < np.arange(len(size))).all()
    end = size.cumsum()
    start = end - size
    child = parent >= 0
    assert (parent[parent[child]] < 0).all()
    heirs, heirs_end, heirs_size = np.full_like(size, end[-1]), np.zeros_like(size), np.zeros_like(size)
    np.minimum.at(heirs, parent[child], start[child])
    np.maximum.at(heirs_end, parent[child], end[child])
    np.add.at(heirs_size, parent[child], size[child])
    heirs = np.minimum(heirs, heirs_end)
    assert (heirs_end - heirs == heirs_size).all(), "children of a prefix are not side by side"
    count = -(-size // block)
    return _Runs(
        start, end, np.where(child, start[parent], 0), np.where(child, end[parent], 0), heirs, heirs_end, count,
        alone=(count == 1) & ~child & (heirs_size == 0),
    )  # fmt: skip


@dataclass(frozen=True)
class _Blocks:
    """Every block's segment, first token and end, ``[blocks]`` each."""

    owner: Ints
    first: Ints
    last: Ints

    @staticmethod
    def of(runs: _Runs, block: int) -> "_Blocks":
        owner, index = _repeat(runs.count)
        first = runs.start[owner] + index * block
        return _Blocks(owner, first, np.minimum(first + block, runs.end[owner]))


def _query_rows(runs: _Runs, blocks: _Blocks, block: int) -> Ints:
    """`Layout.queries`."""
    owner, first, last = blocks.owner, blocks.first, blocks.last
    rows = np.stack([first, last, runs.start[owner], runs.prefix[owner], runs.prefix_end[owner], runs.alone[owner]], 1)
    work = (last - runs.start[owner]) // block + (runs.prefix_end - runs.prefix)[owner] // block
    return rows[np.argsort(-work, kind="stable")]


def _key_rows(runs: _Runs, blocks: _Blocks, block: int, parts: int) -> tuple[Ints, Ints, int]:
    """`Layout.keys` and `Layout.joins`, and how many rows share a block with others."""
    tiles = -(-(runs.heirs_end - runs.heirs) // block)
    shares = np.clip(-(-tiles // PART_TILES), 1, max(1, parts // max(1, int(runs.count[tiles > 0].sum()))))
    share = -(-tiles // shares) * block
    row, part = _repeat(shares[blocks.owner])
    owner, first, last = blocks.owner[row], blocks.first[row], blocks.last[row]
    shared = shares[owner] > 1
    near, near_end = np.where(part == 0, first, runs.end[owner]), runs.end[owner]
    far = np.minimum(runs.heirs[owner] + part * share[owner], runs.heirs_end[owner])
    far_end = np.minimum(far + share[owner], runs.heirs_end[owner])
    slot = np.where(shared, shared.cumsum() - 1, -1)
    keys = np.stack([first, last, near, near_end, far, far_end, slot, runs.alone[owner]], 1)
    joins = np.stack([first, last, slot, slot + shares[owner]], 1)[shared & (part == 0)]
    return keys[np.argsort(near - near_end + far - far_end, kind="stable")], joins, int(shared.sum())


def _repeat(counts: Ints) -> tuple[Ints, Ints]:
    """For each of ``counts[i]`` copies of i: i, and which copy it is."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - (counts.cumsum() - counts)[owner]


def _pad(table: Ints, rows: int) -> Ints:
    return np.concatenate([table, np.zeros((rows - len(table), table.shape[1]), dtype=table.dtype)])
