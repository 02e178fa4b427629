"""Which texts say the same: exactly, once case and spacing are set aside, or nearly.

Nearly alike means that the sets of five-character shingles have a Jaccard index of at least `ALIKE` (Broder 1997). Pairs
worth comparing are found by MinHash in its one-permutation form (Li, Owen, Zhang 2012) and banding, so the time grows with
the characters read, not with the pairs there are. Shingles that a tenth of the texts contain (an instruction all rows
repeat) tell no text from another and do not count.
"""

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHINGLE, BINS, BAND = 5, 32, 4
"""Characters of a shingle; minima kept of a text; minima that must agree for two texts to be compared."""
ALIKE, COMMON = 0.8, 0.1
LONGEST = 4_000
"""Characters of a text that are read."""
MOST_PAIRS = 30_000
"""Pairs compared at most, so that the time is bounded."""

Hashes = NDArray[np.uint64]
_CHUNK = 1 << 20
_EMPTY = np.uint64(2**64 - 1)


def normalised(text: str) -> str:
    """The text without what makes no difference to a reader: compatibility forms, case, spacing."""
    plain = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return " ".join(plain.casefold().split())


def groups_of(keys: Iterable[Any]) -> list[list[int]]:
    """Indices of equal keys, for every key that occurs more than once, in order."""
    seen: dict[Any, list[int]] = {}
    for index, key in enumerate(keys):
        seen.setdefault(key, []).append(index)
    return [group for group in seen.values() if len(group) > 1]


def near_groups(
    texts: Sequence[str], watch: Callable[[int, int], None] = lambda done, total: None, since: int = 0
) -> list[list[int]]:
    """Indices of texts that are nearly alike, not equal; each group's texts hang together by alike pairs.

    Args:
        texts: normalised. watch: told how many of how many are read. since: compare only pairs one of which has at least
            this index.
    """
    first: dict[str, int] = {}
    for index, text in enumerate(texts):
        first.setdefault(text, index)
    different = list(first)
    common = _common(different)
    sketches = _sketches(different, common, watch)
    parents = list(range(len(different)))
    shingles = lru_cache(1024)(lambda index: _rare_shingles(different[index], common))
    latest = sum(index < since for index in first.values())
    for a, b in _likely_pairs(sketches, latest):
        if _root(parents, a) != _root(parents, b) and _jaccard(shingles(a), shingles(b)) >= ALIKE:
            low, high = sorted((_root(parents, a), _root(parents, b)))
            parents[high] = low
    return [[first[different[i]] for i in group] for group in groups_of(_root(parents, i) for i in range(len(different)))]


def _root(parents: list[int], index: int) -> int:
    while parents[index] != index:
        parents[index] = index = parents[parents[index]]
    return index


def _shingles(texts: Sequence[str]) -> tuple[Hashes, NDArray[np.int64]]:
    """Hashes of all shingles, and which text each is of."""
    texts = [text[:LONGEST] for text in texts]
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    owner = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    count = max(len(codes) - SHINGLE + 1, 0)
    hashes = np.zeros(count, np.uint64)
    for offset in range(SHINGLE):
        hashes = hashes * np.uint64(0x100000001B3) + codes[offset : offset + count]
    hashes = (hashes ^ (hashes >> np.uint64(31))) * np.uint64(0x9E3779B97F4A7C15)  # mix high bits: bins are read off them
    hashes = (hashes ^ (hashes >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    whole = owner[:count] == owner[SHINGLE - 1 : SHINGLE - 1 + count]
    return hashes[whole], owner[:count][whole]


def _common(texts: Sequence[str]) -> NDArray[np.bool_]:
    """A table over the top 20 bits of a hash: shingles that `COMMON` of a sample of the texts contain."""
    table = np.zeros(1 << 20, np.bool_)
    sample = texts[:: max(len(texts) // 1000, 1)]
    if len(sample) < 20:
        return table
    hashes, owner = _shingles([text[:1000] for text in sample])
    each = np.unique(np.stack([hashes >> np.uint64(44), owner.astype(np.uint64)]), axis=1)
    slots, counts = np.unique(each[0], return_counts=True)
    table[slots[counts > COMMON * len(sample)]] = True
    return table


def _sketches(texts: Sequence[str], common: NDArray[np.bool_], watch: Callable[[int, int], None]) -> Hashes:
    """``[texts, BINS]``: of the hashes that fall into each bin, the smallest."""
    sketches = np.full((len(texts), BINS), _EMPTY)
    start = 0
    while start < len(texts):
        end, size = start, 0
        while end < len(texts) and size < _CHUNK:
            size += min(len(texts[end]), LONGEST)
            end += 1
        hashes, owner = _shingles(texts[start:end])
        rare = ~common[hashes >> np.uint64(44)]
        hashes, owner = hashes[rare], owner[rare]
        bins = (hashes % np.uint64(BINS)).astype(np.int64)
        np.minimum.at(sketches.reshape(-1), (owner + start) * BINS + bins, hashes)
        start = end
        watch(end, len(texts))
    return sketches


def _likely_pairs(sketches: Hashes, since: int) -> Iterator[tuple[int, int]]:
    """Neighbours among the texts that agree in a whole band and in three fifths of their minima (of alike ones, 99.8 % do),
    at most `MOST_PAIRS`, one of each at or after ``since``."""
    left = MOST_PAIRS
    for band in range(0, BINS, BAND):
        part = sketches[:, band : band + BAND]
        rows = np.flatnonzero((part != _EMPTY).any(axis=1))
        order = rows[np.lexsort(part[rows].T)]
        a, b = order[:-1], order[1:]
        same = (part[a] == part[b]).all(axis=1) & (np.maximum(a, b) >= since)
        a, b = a[same], b[same]
        filled = (sketches[a] != _EMPTY) | (sketches[b] != _EMPTY)
        agree = ((sketches[a] == sketches[b]) & filled).sum(axis=1) >= 0.6 * filled.sum(axis=1)
        a, b = a[agree][:left], b[agree][:left]
        left -= len(a)
        yield from zip(a.tolist(), b.tolist())


def _rare_shingles(text: str, common: NDArray[np.bool_]) -> Hashes:
    """A text's different shingles, common ones left out, ascending."""
    hashes, _ = _shingles([text])
    return np.unique(hashes[~common[hashes >> np.uint64(44)]])


def _jaccard(a: Hashes, b: Hashes) -> float:
    """Shingles both have over shingles either has."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    either = len(a) + len(b) - both
    return both / either if either else 0.0
