"""Which examples share a row of ``max_length`` tokens, and how a micro-batch of rows lies flat in memory.

A document never attends to another one: rows decide only what is computed together. Under ``wrapped``, which follows the
reference, a row of concatenated examples is one document.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise

import torch
from torch import Tensor

from tunesmith.data.render import IGNORE, Example
from tunesmith.kernels.segments import Segments, segment_positions

MIN_PREFIX = 8
"""Tokens two documents must begin with in common before their prefix is shared."""


@dataclass(frozen=True)
class Pack:
    """A micro-batch as the model takes it.

    input_ids: ``[T]`` int64, shared prefixes first, then documents. position_ids: ``[T]`` int64, of each token in its own
    document. label_index: ``[N]`` int64, flat positions that predict a trained token (a shared position stands here once
    for every document that trains on it). targets: ``[N]`` int64, the tokens predicted there. segments: which tokens form
    a document. tokens: tokens of the rows before sharing. where: the rows in it.
    """

    input_ids: Tensor
    position_ids: Tensor
    label_index: Tensor
    targets: Tensor
    segments: Segments
    tokens: int
    where: tuple[str, ...]

    def to(self, device: torch.device) -> "Pack":
        if self.input_ids.device == device:
            return self
        segments = replace(self.segments, device=torch.device(device))
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            position_ids=self.position_ids.to(device),
            label_index=self.label_index.to(device),
            targets=self.targets.to(device),
            segments=segments,
        )


def pad_pack(pack: Pack, tokens: int, labels: int, blocks: int) -> Pack:
    """The same pack with more tokens (a document of its own, which nothing sees) and more labels (with no target), so that
    its arrays have these sizes; its attention tables get so many rows. Its loss and gradient are those of the pack."""
    more, untrained = tokens - len(pack.input_ids), labels - len(pack.targets)
    segments = replace(pack.segments, blocks=blocks)
    if more:
        segments = replace(segments, lengths=(*segments.lengths, more), parents=(*segments.parents, -1))
    return replace(
        pack,
        input_ids=torch.cat([pack.input_ids, pack.input_ids.new_zeros(more)]),
        position_ids=torch.cat([pack.position_ids, torch.arange(more)]),
        label_index=torch.cat([pack.label_index, pack.label_index.new_zeros(untrained)]),
        targets=torch.cat([pack.targets, pack.targets.new_full((untrained,), IGNORE)]),
        segments=segments,
    )


def plan_rows(examples: Sequence[Example], strategy: str, max_length: int) -> list[list[Example]]:
    """Rows of at most ``max_length`` tokens, each a list of documents.

    ``bfd``: best-fit decreasing, whole examples. ``wrapped``: all tokens in one stream, cut every ``max_length``
    (a row is then one document, as in trl). ``none``: one example a row.
    """
    if strategy == "wrapped":
        return [[document] for document in _wrap(examples, max_length)]
    if strategy == "none":
        return [[example] for example in examples]
    return _best_fit(examples, max_length)


def _wrap(examples: Sequence[Example], max_length: int) -> list[Example]:
    ids = list(chain.from_iterable(example.input_ids for example in examples))
    labels = list(chain.from_iterable(example.labels for example in examples))
    starts = range(0, len(ids), max_length)
    return [Example(ids[s : s + max_length], labels[s : s + max_length], f"packed row {s // max_length + 1}") for s in starts]


def _best_fit(examples: Sequence[Example], max_length: int) -> list[list[Example]]:
    """Longest first, each into the fullest row that still has room (Johnson 1973); equal lengths keep their order."""
    rows: list[list[Example]] = []
    open_rows: list[tuple[int, int]] = []  # (room, row), ascending
    for example in sorted(examples, key=lambda e: -len(e.input_ids)):
        length = len(example.input_ids)
        found = bisect.bisect_left(open_rows, (length, -1))
        if found == len(open_rows):
            rows.append([])
            room, row = max_length, len(rows) - 1
        else:
            room, row = open_rows.pop(found)
        rows[row].append(example)
        bisect.insort(open_rows, (room - length, row))
    return rows


def make_pack(rows: Sequence[Sequence[Example]], shared_prefix: bool = True) -> Pack:
    """Rows laid flat. With ``shared_prefix``, tokens that documents begin with in common are there once.

    What a document trains on decides how much of it is needed: its inputs end before its last trained token, since what
    follows (that token itself, a template's closing newline) influences no loss.
    """
    documents = [d for d in chain.from_iterable(rows) if d.trained]
    flat = _Flat()
    for group, prefix in _groups(documents, shared_prefix):
        flat.add(group, prefix)
    tokens = sum(len(example.input_ids) for row in rows for example in row)
    segments = Segments.of(flat.lengths, flat.parents)
    return Pack(
        input_ids=torch.tensor(flat.ids, dtype=torch.int64),
        position_ids=segment_positions(segments) if flat.lengths else torch.empty(0, dtype=torch.int64),
        label_index=torch.tensor(flat.label_index, dtype=torch.int64),
        targets=torch.tensor(flat.targets, dtype=torch.int64),
        segments=segments,
        tokens=tokens,
        where=tuple(document.where for document in documents),
    )


class _Flat:
    """The arrays of a pack under construction."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.lengths: list[int] = []
        self.parents: list[int] = []
        self.label_index: list[int] = []
        self.targets: list[int] = []

    def add(self, group: Sequence[Example], prefix: int) -> None:
        """Documents that continue one shared prefix of so many tokens (0 for none)."""
        parent, prefix_start = -1, len(self.ids)
        if prefix:
            parent = len(self.lengths)
            self._segment(group[0].input_ids[:prefix], -1)
        for document in sorted(group, key=_needed):
            start = len(self.ids) - prefix  # flat position of the document's token i is start + i, or in the prefix
            self._segment(document.input_ids[prefix : _needed(document)], parent)
            for position, label in enumerate(document.labels[1:]):
                if label != IGNORE:
                    self.label_index.append(position + (prefix_start if position < prefix else start))
                    self.targets.append(label)

    def _segment(self, ids: list[int], parent: int) -> None:
        self.ids.extend(ids)
        self.lengths.append(len(ids))
        self.parents.append(parent)


def _needed(document: Example) -> int:
    """Tokens of a document that are inputs of some loss: those before its last trained token."""
    last = len(document.labels) - 1
    while document.labels[last] == IGNORE:
        last -= 1
    return last


def _groups(documents: Sequence[Example], share: bool) -> list[tuple[list[Example], int]]:
    """Documents by the prefix they share, and its length. Neighbours in sorted order share the longest prefixes."""
    if not share or len(documents) < 2:
        return [(list(documents), 0)] if documents else []
    ordered = sorted(documents, key=lambda d: d.input_ids)
    common = [_common_prefix(a, b) for a, b in pairwise(ordered)]
    groups: list[tuple[list[Example], int]] = []
    alone: list[Example] = []
    first = 0
    for last in range(len(ordered)):
        if last < len(common) and common[last] >= MIN_PREFIX:
            continue
        if last > first:
            groups.append((ordered[first : last + 1], min(common[first:last])))
        else:
            alone.append(ordered[first])
        first = last + 1
    return groups + ([(alone, 0)] if alone else [])


def _common_prefix(a: Example, b: Example) -> int:
    """Tokens both begin with; each keeps at least one token of its own."""
    limit = min(_needed(a), _needed(b)) - 1
    length = 0
    for x, y in zip(a.input_ids[: max(limit, 0)], b.input_ids):
        if x != y:
            break
        length += 1
    return length
