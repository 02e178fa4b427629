"""Proves that intervals hold the true difference as often as they say, for few rows and skewed ones too, and never cry wolf."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.generate.bootstrap import MIN_ROWS, _student, paired_interval


@pytest.mark.parametrize("rows", [8, 30])
@pytest.mark.parametrize("draw", ["normal", "exponential", "lognormal halves"])
def test_nineteen_intervals_of_twenty_hold_the_true_difference(rows, draw):
    made = np.random.default_rng(rows)
    held = 0
    for trial in range(200):
        before = made.normal(size=rows) * 3
        if draw == "normal":
            change, true = made.normal(0.5, 1, rows), 0.5
        elif draw == "exponential":
            change, true = made.exponential(1, rows), 1.0
        else:
            change, true = made.lognormal(0, 0.5, rows), float(np.exp(0.125))
        interval = paired_interval(before, before + change, seed=trial)
        held += interval.low <= true <= interval.high
    # 200 draws of a probability of 0.95 vary by 0.015; skewed rows cost a few hundredths more
    assert held / 200 >= (0.91 if draw == "normal" else 0.85)
    assert held / 200 < 1.0 or rows == 8


def test_no_difference_is_found_between_rows_that_differ_by_chance_alone():
    made = np.random.default_rng(5)
    found = 0
    for trial in range(200):
        before, after = made.normal(size=(2, 20))
        found += paired_interval(before, after, seed=trial).excludes_zero
    assert found / 200 <= 0.09


def test_weights_count_as_so_many_rows_do():
    before, after, weights = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [2.0, 2.0, 3.0, 5.0, 5.0, 9.0], [1, 5, 2, 2, 1, 9]
    interval = paired_interval(before, after, weights)
    true = np.average(np.subtract(after, before), weights=weights)
    assert interval.low < true < interval.high
    alone = paired_interval(before, after, [1e-9, 1e-9, 1e-9, 1e-9, 1e-9, 1.0])
    assert alone.high == pytest.approx(3.0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[st.floats(-1e3, 1e3)] * 2), min_size=MIN_ROWS, max_size=40))
def test_the_interval_lies_within_the_differences_and_turns_with_the_sides(pairs):
    before, after = zip(*pairs)
    there, back = paired_interval(before, after), paired_interval(after, before)
    differences = np.subtract(after, before)
    assert differences.min() - 1e-9 <= there.low <= there.high <= differences.max() + 1e-9
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low), abs=1e-6)


@pytest.mark.parametrize("rows", range(MIN_ROWS))
def test_fewer_rows_give_no_interval(rows):
    assert paired_interval([0.0] * rows, [1.0] * rows) is None


def test_equal_sides_do_not_differ_and_the_same_gain_everywhere_does():
    assert not paired_interval([1.0, 0.0] * 5, [1.0, 0.0] * 5).excludes_zero
    assert paired_interval([0.0] * 10, [1.0] * 10).excludes_zero


def test_one_changed_row_of_many_is_chance():
    assert not paired_interval([0.0] * 40, [1.0] + [0.0] * 39).excludes_zero


def test_the_seed_decides_every_digit():
    before, after = [0.1, 0.5, 0.2, 0.9, 0.4, 0.3], [0.3, 0.4, 0.6, 0.8, 0.7, 0.1]
    assert paired_interval(before, after, seed=1) == paired_interval(before, after, seed=1)
    assert paired_interval(before, after, seed=1) != paired_interval(before, after, seed=2)


@pytest.mark.parametrize(("freedom", "t"), [(4, 2.776445), (7, 2.364624), (29, 2.045230), (10**6, 1.959966)])
def test_students_quantile_is_the_tables(freedom, t):
    assert _student(freedom) == pytest.approx(t, rel=5e-3)
