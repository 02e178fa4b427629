"""Proves that the prefixes chosen to be computed once are those that save most tokens, and are prefixes."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data import prefix
from tunesmith.data.prefix import MIN_PREFIX, MIN_SAVED, Group, saved, share


def _share(documents):
    return share([np.array(document, np.int32) for document in documents])


@st.composite
def _families(draw):
    """Documents that branch off one another at every depth."""
    documents = [draw(st.lists(st.integers(0, 1), min_size=1, max_size=12))]
    for _ in range(draw(st.integers(0, 6))):
        stem = draw(st.sampled_from(documents))
        kept = draw(st.integers(0, len(stem)))
        documents.append(stem[:kept] + draw(st.lists(st.integers(0, 1), min_size=1, max_size=6)))
    return documents


def _gain(groups):
    return saved(groups) - prefix.MIN_SAVED * sum(group.prefix > 0 for group in groups)


def _best_gain(documents):
    """By trying every set of beginnings that two documents have in common."""
    starts = {tuple(d[:n]) for d in documents for n in range(prefix.MIN_PREFIX, len(d))}
    starts = [s for s in starts if sum(tuple(d[: len(s)]) == s and len(d) > len(s) for d in documents) > 1]
    best = 0
    for count in range(1, 4):
        for chosen in combinations(starts, count):
            gain = -sum(len(s) + prefix.MIN_SAVED for s in chosen)
            for document in documents:
                gain += max([len(s) for s in chosen if len(s) < len(document) and tuple(document[: len(s)]) == s], default=0)
            best = max(best, gain)
    return best


@settings(max_examples=300, deadline=None)
@given(documents=_families())
def test_no_other_choice_saves_more(documents):
    original = prefix.MIN_PREFIX, prefix.MIN_SAVED
    prefix.MIN_PREFIX, prefix.MIN_SAVED = 2, 1  # so that small documents have much to choose
    try:
        assert _gain(_share(documents)) >= _best_gain(documents)
    finally:
        prefix.MIN_PREFIX, prefix.MIN_SAVED = original


@settings(max_examples=200, deadline=None)
@given(documents=_families())
def test_groups_hold_every_document_once_and_begin_alike(documents):
    groups = _share(documents)
    assert sorted(i for group in groups for i in group.members) == list(range(len(documents)))
    for group in groups:
        assert len({tuple(documents[i][: group.prefix]) for i in group.members}) == 1
        if group.prefix:
            assert len(group.members) > 1
            assert group.prefix >= MIN_PREFIX
            assert (len(group.members) - 1) * group.prefix >= MIN_SAVED
            assert all(len(documents[i]) > group.prefix for i in group.members)


def test_prefixes_of_different_depth_are_each_used_by_those_that_gain():
    short, long = list(range(10)), list(range(10)) + list(range(50, 90))
    documents = [[*short, 100 + n, 1] for n in range(4)] + [[*long, 200 + n, 1] for n in range(3)]
    assert _share(documents) == [Group((0, 1, 2, 3), 10), Group((4, 5, 6), 50)]


def test_a_longer_prefix_that_gains_less_than_it_costs_is_left():
    stem = list(range(30))
    documents = [[*stem, 40, 100 + n, 1] for n in range(2)] + [[*stem, 41 + n, 1] for n in range(3)]
    (group,) = _share(documents)
    assert (len(group.members), group.prefix) == (5, 30)


@pytest.mark.parametrize("documents", [[], [[1]], [[1, 2, 3]] * 2, [[n] * 20 for n in range(3)]])
def test_what_has_nothing_in_common_shares_nothing(documents):
    assert saved(_share(documents)) == 0
    assert [len(group.members) for group in _share(documents)] == ([len(documents)] if documents else [])


def test_many_nested_documents_take_no_deep_recursion():
    ids = np.arange(3000, dtype=np.int32)
    groups = share([ids[:n] for n in range(20, 2000)])
    assert sum(len(group.members) for group in groups) == 1980
    assert saved(groups) > 0
