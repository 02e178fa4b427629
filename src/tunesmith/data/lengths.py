"""How long rows are in tokens, and what a max_length does to them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tunesmith.data.render import IGNORE, Example

BINS = 14
"""Bars of a histogram, about."""


@dataclass(frozen=True)
class Bar:
    """Rows of ``low`` to ``high`` tokens, both included."""

    low: int
    high: int
    rows: int


@dataclass(frozen=True)
class Lengths:
    """Tokens a row, of ``measured`` rows. median, p95, longest: of whole rows. answers: median of trained tokens. bars: the
    histogram."""

    measured: int
    median: int
    p95: int
    longest: int
    answers: int
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Cut:
    """What max_length costs. of_rows: rows looked at. rows: of them, those cut. answer_tokens: trained tokens lost by it, of
    ``of_answer_tokens``. whole_answers: rows that keep no trained token. stops: of ``measured`` rows, those that keep a stop
    token to learn from. shortest: the max_length that cuts none."""

    max_length: int
    of_rows: int
    rows: int
    answer_tokens: int
    of_answer_tokens: int
    whole_answers: int
    stops: int
    measured: int
    shortest: int


def lengths_of(examples: Sequence[Example]) -> Lengths:
    """Lengths of examples as rendered, before anything is cut."""
    tokens = np.array([len(example.input_ids) for example in examples])
    trained = [example.trained for example in examples]
    median, p95 = (int(np.percentile(tokens, q, method="higher")) for q in (50, 95))
    return Lengths(len(examples), median, p95, int(tokens.max()), int(np.median(trained)), _bars(tokens.tolist()))


def _bars(tokens: Sequence[int]) -> tuple[Bar, ...]:
    """Bars of one round width; or, where the longest row would squeeze the others into a bar or two, doubling ones."""
    longest, shortest = max(tokens), min(tokens)
    if longest > 12 * sorted(tokens)[len(tokens) // 2]:
        edges = [2**k for k in range(int(math.log2(max(shortest, 1))), int(math.log2(longest)) + 2)]
    else:
        width = _round_up((longest - shortest + 1) / BINS)
        edges = list(range(shortest // width * width, longest + width + 1, width))
        edges = edges[: next(i for i, edge in enumerate(edges) if edge > longest) + 1]
    counts, _ = np.histogram(tokens, [*edges[:-1], edges[-1] + 0.5])
    return tuple(Bar(low, high - 1, int(rows)) for low, high, rows in zip(edges, edges[1:], counts))


def _round_up(width: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50, …"""
    power = 10 ** math.floor(math.log10(max(width, 1)))
    return next(int(step * power) for step in (1, 2, 5, 10) if step * power >= width)


def cut_of(examples: Sequence[Example], max_length: int, stops: set[int]) -> Cut:
    """What ``max_length`` does to these examples. ``stops``: tokens that end an answer."""
    long = [example for example in examples if len(example.input_ids) > max_length]
    kept = [sum(label != IGNORE for label in example.labels[1:max_length]) for example in long]
    stopped = sum(not stops.isdisjoint(example.labels[1:max_length]) for example in examples)
    return Cut(
        max_length,
        len(examples),
        len(long),
        sum(example.trained for example in long) - sum(kept),
        sum(example.trained for example in examples),
        sum(not tokens for tokens in kept),
        stopped,
        len(examples),
        max(len(example.input_ids) for example in examples),
    )
