"""Proves that rows are filled as best-fit decreasing fills them, fully, fast, and with every example once."""

import bisect
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.best_fit import best_fit


def _one_by_one(lengths, max_length):
    """The plain twin: how full the rows are when examples are placed one after another."""
    rooms, full = [], []
    for length in sorted(lengths, reverse=True):
        found = bisect.bisect_left(rooms, length)
        room = rooms.pop(found) if found < len(rooms) else max_length
        bisect.insort(rooms, room - length)
    full += [max_length - room for room in rooms]
    return sorted(full)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_rows_are_as_full_as_when_examples_are_placed_one_by_one(data):
    max_length = data.draw(st.integers(1, 40))
    lengths = np.array(data.draw(st.lists(st.integers(1, max_length), max_size=60)), np.int64)
    rows = best_fit(lengths, max_length)
    assert sorted(rows.order.tolist()) == list(range(len(lengths)))
    assert sorted(int(lengths[rows.members(i)].sum()) for i in range(len(rows))) == _one_by_one(lengths.tolist(), max_length)


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=40))
def test_equal_lengths_come_in_their_order_and_longer_ones_first(lengths):
    rows = best_fit(np.array(lengths), 9)
    for i in range(len(rows)):
        members = rows.members(i).tolist()
        assert members == sorted(members, key=lambda m: (-lengths[m], m))


@pytest.mark.parametrize(("mean", "deviation", "max_length"), [(4, 0.8, 1024), (5, 0.8, 2048), (5.5, 1, 4096), (6, 0.8, 2048)])
def test_of_log_normal_lengths_at_least_99_percent_of_the_slots_are_filled(mean, deviation, max_length):
    drawn = np.random.default_rng(0).lognormal(mean, deviation, 20_000)
    lengths = np.clip(drawn.astype(np.int64), 1, max_length)
    rows = best_fit(lengths, max_length)
    assert lengths.sum() / (len(rows) * max_length) >= 0.99


def test_a_million_examples_are_planned_in_three_seconds_of_one_core():
    lengths = np.clip(np.random.default_rng(0).lognormal(5, 0.8, 1_000_000).astype(np.int64), 1, 2048)
    start = time.process_time()
    rows = best_fit(lengths, 2048)
    assert time.process_time() - start <= 3
    assert len(rows.order) == 1_000_000
