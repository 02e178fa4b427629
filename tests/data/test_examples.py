"""Proves that examples in arrays are the examples that were put in."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.examples import Builder, gather
from tunesmith.data.render import IGNORE, Example, cut

WHERE = st.sampled_from(["a.jsonl line ", "a b", "data/x 7 row ", "", "v1.", "line 0"])


@st.composite
def _examples(draw):
    made = []
    for _ in range(draw(st.integers(0, 8))):
        ids = draw(st.lists(st.integers(0, 2**31 - 1), max_size=9))
        labels = [token if draw(st.booleans()) else IGNORE for token in ids]
        number = draw(st.sampled_from(["", "0", "7", "07", "123456", "9" * 25, "-1", "٣"]))
        made.append(Example(ids, labels, draw(WHERE) + number))
    return made


@settings(max_examples=200, deadline=None)
@given(examples=_examples())
def test_examples_come_out_as_they_went_in(examples):
    kept = gather(examples)
    assert list(kept) == examples
    assert kept.lengths.tolist() == [len(e.input_ids) for e in examples]
    assert kept.counts.tolist() == [e.trained for e in examples]


@settings(max_examples=100, deadline=None)
@given(examples=_examples(), max_length=st.integers(1, 10))
def test_cutting_is_that_of_lists(examples, max_length):
    kept = gather(examples).cut(max_length)
    shorter, _, lost = cut(examples, max_length)
    assert list(kept) == shorter
    assert int((gather(examples).counts - kept.counts).sum()) == lost


@settings(max_examples=100, deadline=None)
@given(examples=_examples(), data=st.data())
def test_some_are_taken_in_the_order_asked_for(examples, data):
    chosen = data.draw(st.lists(st.integers(0, len(examples) - 1), max_size=9)) if examples else []
    assert list(gather(examples).take(np.array(chosen, np.int64))) == [examples[i] for i in chosen]


def test_a_million_tokens_take_five_bytes_each():
    builder = Builder()
    for number in range(1000):
        builder.add(Example(list(range(1000)), [IGNORE] * 1000, f"a.jsonl line {number}"))
    kept = builder.examples()
    assert kept.ids.nbytes + kept.trained.nbytes == 5_000_000
    assert kept.stems == ("a.jsonl line ",)


def test_an_index_beyond_the_last_is_an_error():
    with pytest.raises(IndexError):
        gather([Example([1], [1], "row")])[1]
