"""Which examples share a row of ``max_length`` tokens, and how a micro-batch of rows lies flat in memory.

A document never attends to another one: rows decide only what is computed together. Under ``wrapped``, which follows the
reference, a row of concatenated examples is one document.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tunesmith.data.best_fit import Rows, best_fit, one_a_row
from tunesmith.data.examples import Examples, gather
from tunesmith.data.prefix import Group, share
from tunesmith.data.render import IGNORE, Example
from tunesmith.kernels.segments import Documents, Segments, segment_positions

Ints = NDArray[np.int64]


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


def pad_pack(pack: Pack, tokens: int, labels: int, blocks: int, like: Documents | None = None) -> Pack:
    """The same pack with more tokens (a document of its own, which nothing sees) and more labels (with no target), so that
    its arrays have these sizes; its attention tables get so many rows, and the tile of documents like these. Its loss and
    gradient are those of the pack."""
    more, untrained = tokens - len(pack.input_ids), labels - len(pack.targets)
    segments = replace(pack.segments, blocks=blocks, like=like)
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


@dataclass(frozen=True, eq=False)
class PackedRows(Sequence[list[Example]]):
    """Rows of examples, each made when asked for. examples: of all rows. rows: which of them each row holds."""

    examples: Examples
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> list[Example]:  # type: ignore[override]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return [self.examples[i] for i in self.rows.members(index % len(self))]


def pack_rows(examples: Examples, strategy: str, max_length: int) -> PackedRows:
    """Rows of at most ``max_length`` tokens, each of whole documents; no example may be longer, but for ``wrapped``.

    ``bfd``: best-fit decreasing. ``wrapped``: all tokens in one stream, cut every ``max_length`` (a row is then one
    document, as in trl). ``none``: one example a row.
    """
    if strategy == "wrapped":
        examples = examples.wrapped(max_length)
    rows = best_fit(examples.lengths, max_length) if strategy == "bfd" else one_a_row(len(examples))
    return PackedRows(examples, rows)


def plan_rows(examples: Sequence[Example], strategy: str, max_length: int) -> list[list[Example]]:
    """The rows of `pack_rows` for a few examples at hand."""
    return list(pack_rows(gather(examples), strategy, max_length))


@dataclass(frozen=True, eq=False)
class Document:
    """An example as far as it is computed. ids: its inputs, which end before its last trained token, since what follows
    (that token itself, a template's closing newline) influences no loss; int32 ``[n]``. places: positions that predict a
    trained token, int64 ``[N]``. targets: those tokens, int64 ``[N]``. tokens: of the whole example. where: its row."""

    ids: NDArray[np.int32]
    places: Ints
    targets: Ints
    tokens: int
    where: str

    @staticmethod
    def of(example: Example) -> "Document | None":
        """None if nothing is trained in it."""
        labels = np.array(example.labels[1:], dtype=np.int64)
        places = np.flatnonzero(labels != IGNORE)
        if not len(places):
            return None
        ids = np.array(example.input_ids[: places[-1] + 1], dtype=np.int32)
        return Document(ids, places, labels[places], len(example.input_ids), example.where)


def documents(rows: Sequence[Sequence[Example]]) -> list[Document]:
    """The documents of these rows that train something."""
    made = (Document.of(example) for example in chain.from_iterable(rows))
    return [document for document in made if document is not None]


def make_pack(rows: Sequence[Sequence[Example]], shared_prefix: bool = True) -> Pack:
    """Rows laid flat. With ``shared_prefix``, tokens that documents begin with in common are there once."""
    tokens = sum(len(example.input_ids) for row in rows for example in row)
    return lay_flat(documents(rows), tokens, shared_prefix)


def laid(chosen: Sequence[Document], shared_prefix: bool = True) -> list[Group]:
    """The documents in the order in which a pack has them: group after group, like lengths side by side."""
    alone = Group(tuple(range(len(chosen))), 0)
    groups = share([document.ids for document in chosen]) if shared_prefix else [alone]
    return [Group(tuple(sorted(group.members, key=lambda i: len(chosen[i].ids))), group.prefix) for group in groups]


def lay_flat(chosen: Sequence[Document], tokens: int, shared_prefix: bool = True) -> Pack:
    """Documents as a pack. ``tokens``: of the rows they come from."""
    flat = _Flat()
    for group in laid(chosen, shared_prefix):
        flat.add([chosen[i] for i in group.members], group.prefix)
    segments = Segments.of(flat.lengths, flat.parents)
    return Pack(
        input_ids=_tensor(flat.ids),
        position_ids=segment_positions(segments) if flat.lengths else torch.empty(0, dtype=torch.int64),
        label_index=_tensor(flat.label_index),
        targets=_tensor(flat.targets),
        segments=segments,
        tokens=tokens,
        where=tuple(document.where for document in chosen),
    )


class _Flat:
    """The arrays of a pack under construction, in pieces. size: tokens so far."""

    def __init__(self) -> None:
        self.ids: list[NDArray[np.int32]] = []
        self.label_index: list[Ints] = []
        self.targets: list[Ints] = []
        self.lengths: list[int] = []
        self.parents: list[int] = []
        self.size = 0

    def add(self, group: Sequence[Document], prefix: int) -> None:
        """Documents that continue one shared prefix of so many tokens (0 for none)."""
        parent, prefix_start = -1, self.size
        if prefix:
            parent = len(self.lengths)
            self._segment(group[0].ids[:prefix], -1)
        for document in group:
            start = self.size - prefix  # flat position of the document's token i is start + i, or in the prefix
            self._segment(document.ids[prefix:], parent)
            self.label_index.append(document.places + np.where(document.places < prefix, prefix_start, start))
            self.targets.append(document.targets)

    def _segment(self, ids: NDArray[np.int32], parent: int) -> None:
        self.ids.append(ids)
        self.lengths.append(len(ids))
        self.parents.append(parent)
        self.size += len(ids)


def _tensor(pieces: Sequence[NDArray[np.int32]] | Sequence[Ints]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *pieces]))
