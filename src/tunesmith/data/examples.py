"""Many examples in little memory: five bytes a token in flat arrays instead of a Python list a row."""

import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.render import IGNORE, Example

Ints = NDArray[np.int64]
_NUMBERED = re.compile(r"(.*?)(0|[1-9][0-9]{0,17})", re.DOTALL | re.ASCII)


@dataclass(frozen=True, eq=False)
class Examples:
    """A sequence of `Example`, made one by one when asked for.

    ids: tokens, int32 ``[T]``. trained: which of them are labelled, bool ``[T]``. begins, ends: of each example there,
    int64 ``[n]``. stems, stem, number: where example i comes from is ``stems[stem[i]]`` and then ``number[i]`` (-1 for
    none). digests: 16 bytes of a hash of each example's conversation, uint8 ``[n, 16]``. weights: how often it is used in an
    epoch, float64 ``[n]``. counts: trained tokens of each, as `Example.trained` counts them, int64 ``[n]``.
    """

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    begins: Ints
    ends: Ints
    stems: tuple[str, ...]
    stem: NDArray[np.int32]
    number: Ints
    digests: NDArray[np.uint8]
    weights: NDArray[np.float64]
    counts: Ints

    def __len__(self) -> int:
        return len(self.begins)

    def __getitem__(self, index: int) -> Example:
        part = slice(self.begins[index], self.ends[index])
        ids = self.ids[part]
        labels = np.where(self.trained[part], ids, IGNORE)
        return Example(ids.tolist(), labels.tolist(), self.where(index))

    def where(self, index: int) -> str:
        """The row an example comes from."""
        number = int(self.number[index])
        return self.stems[self.stem[index]] + (str(number) if number >= 0 else "")

    @cached_property
    def lengths(self) -> Ints:
        """Tokens of each example."""
        return self.ends - self.begins

    def take(self, indices: Ints) -> "Examples":
        """Those examples, in that order; the tokens are not copied."""
        return replace(
            self, begins=self.begins[indices], ends=self.ends[indices], stem=self.stem[indices], number=self.number[indices],
            digests=self.digests[indices], weights=self.weights[indices], counts=self.counts[indices],
        )  # fmt: skip

    def cut(self, max_length: int) -> "Examples":
        """The first ``max_length`` tokens of each; the tokens are not copied."""
        ends = np.minimum(self.ends, self.begins + max_length)
        counts = self.counts.copy()
        for i in np.flatnonzero(ends < self.ends).tolist():
            counts[i] = _count(self.trained[self.begins[i] : ends[i]])
        return replace(self, ends=ends, counts=counts)

    def wrapped(self, max_length: int) -> "Examples":
        """All tokens as one stream, cut every ``max_length``: no row then begins where an example does, as in trl."""
        inside = np.repeat(self.begins - np.cumsum(self.lengths) + self.lengths, self.lengths) + np.arange(self.lengths.sum())
        begins = np.arange(0, len(inside), max_length)
        ends = np.minimum(begins + max_length, len(inside))
        rows, trained = len(begins), self.trained[inside]
        counts = np.array([_count(trained[begin:end]) for begin, end in zip(begins, ends)], dtype=np.int64)
        return Examples(
            self.ids[inside], trained, begins, ends, ("packed row ",), np.zeros(rows, np.int32),
            np.arange(1, rows + 1), np.zeros((rows, 16), np.uint8), np.ones(rows), counts,
        )  # fmt: skip


def _count(trained: NDArray[np.bool_]) -> int:
    """Trained tokens of an example; its first has no predecessor to be predicted from."""
    return int(np.count_nonzero(trained[1:]))


class Builder:
    """Collects examples into arrays that grow."""

    def __init__(self) -> None:
        self._ids, self._trained, self._ends = array("i"), bytearray(), array("q")
        self._stems: dict[str, int] = {}
        self._stem, self._number, self._digests = array("i"), array("q"), bytearray()
        self._weights, self._counts = array("d"), array("q")

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, example: Example, digest: bytes = bytes(16), weight: float = 1.0) -> None:
        """One more example; 16 bytes that stand for its conversation; how often it is used in an epoch."""
        self._ids.fromlist(example.input_ids)
        trained = bytes(map(IGNORE.__ne__, example.labels))
        self._trained += trained
        self._counts.append(trained.count(1, 1))
        self._ends.append(len(self._ids))
        found = _NUMBERED.fullmatch(example.where)
        stem, number = (found[1], int(found[2])) if found else (example.where, -1)
        self._stem.append(self._stems.setdefault(stem, len(self._stems)))
        self._number.append(number)
        self._digests.extend(digest)
        self._weights.append(weight)

    def examples(self) -> Examples:
        """All that was added; nothing more may be."""
        ends = np.frombuffer(self._ends, np.int64)
        return Examples(
            np.frombuffer(self._ids, np.int32), np.frombuffer(self._trained, np.bool_), np.append(0, ends)[:-1], ends,
            tuple(self._stems), np.frombuffer(self._stem, np.int32), np.frombuffer(self._number, np.int64),
            np.frombuffer(self._digests, np.uint8).reshape(-1, 16), np.frombuffer(self._weights, np.float64),
            np.frombuffer(self._counts, np.int64),
        )  # fmt: skip


def gather(examples: Sequence[Example]) -> Examples:
    """The same examples in arrays."""
    builder = Builder()
    for example in examples:
        builder.add(example)
    return builder.examples()
