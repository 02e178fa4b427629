"""Proves that dropped positions are an exact, reproducible Bernoulli process, however few gaps are drawn at a time."""

import math

import numpy as np
import pytest
import torch

from tunesmith.kernels import dropout
from tunesmith.kernels.dropout import dropped_positions, mask_of

CASES = [(1, 0.5), (7, 0.05), (1000, 0.05), (1000, 0.5), (1000, 0.999), (100_000, 0.001)]


def _drawn(count: int, p: float, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return dropped_positions(count, p)


def _deviations(successes: int, trials: int, p: float) -> float:
    return abs(successes - trials * p) / math.sqrt(trials * p * (1 - p))


@pytest.mark.parametrize(("count", "p"), CASES)
def test_positions_are_ascending_distinct_and_in_range(count, p):
    for seed in range(20):
        positions = _drawn(count, p, seed)
        assert positions.dtype == torch.int64
        assert (positions.diff() > 0).all()
        assert ((positions >= 0) & (positions < count)).all()


def test_no_elements_drop_nothing():
    assert _drawn(0, 0.5, 1).shape == (0,)


@pytest.mark.parametrize("p", [0.01, 0.05, 0.3, 0.9])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_rate_is_within_binomial_bounds(p, seed):
    assert _deviations(len(_drawn(100_000, p, seed)), 100_000, p) < 4.5


def test_every_position_is_as_likely_as_every_other_and_independent_of_its_neighbour():
    count, p, trials = 16, 0.3, 3000
    torch.manual_seed(5)
    dropped = torch.stack([~mask_of(dropped_positions(count, p), (count,)) for _ in range(trials)])
    for successes in dropped.sum(0).tolist():
        assert _deviations(successes, trials, p) < 4.5
    for successes in (dropped[:, 1:] & dropped[:, :-1]).sum(0).tolist():
        assert _deviations(successes, trials, p * p) < 4.5


def test_the_seed_of_torch_alone_decides_the_draw():
    first = _drawn(500, 0.1, 11)
    np.random.seed(0)
    assert torch.equal(first, _drawn(500, 0.1, 11))
    assert not torch.equal(first, _drawn(500, 0.1, 12))


def test_two_calls_after_one_seed_draw_differently():
    first = _drawn(500, 0.1, 11)
    assert not torch.equal(first, dropped_positions(500, 0.1))


@pytest.mark.parametrize("count", [9, 10, 11, 100])
def test_draws_that_fall_short_are_continued_where_they_stopped(monkeypatch, count):
    monkeypatch.setattr(dropout, "_gaps", lambda generator, draws, p: np.full(3, 2))
    assert dropped_positions(count, 0.5).tolist() == list(range(1, count, 2))


def test_draws_that_fall_short_keep_the_rate(monkeypatch):
    whole = dropout._gaps
    monkeypatch.setattr(dropout, "_gaps", lambda generator, draws, p: whole(generator, 40, p))
    positions = _drawn(20_000, 0.1, 3)
    assert (positions.diff() > 0).all()
    assert positions[-1] < 20_000
    assert _deviations(len(positions), 20_000, 0.1) < 4.5


def test_mask_is_false_at_exactly_the_positions():
    mask = mask_of(torch.tensor([0, 4, 5]), (2, 3))
    assert mask.tolist() == [[False, True, True], [True, False, False]]
