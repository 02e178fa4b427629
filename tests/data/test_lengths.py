"""Proves that the histogram counts every row once and that what is cut is counted as the preparation counts it."""

from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.lengths import cut_of, lengths_of
from tunesmith.data.render import IGNORE, Example, cut

STOP = 7


def example(context: int, answer: int) -> Example:
    ids = [1] * context + [2] * (answer - 1) + [STOP]
    return Example(ids, [IGNORE] * context + ids[context:], "row")


EXAMPLES = st.lists(st.builds(example, st.integers(1, 600), st.integers(1, 600)), min_size=1, max_size=40)


@given(EXAMPLES)
def test_every_row_stands_in_one_bar(examples: list[Example]) -> None:
    lengths = lengths_of(examples)
    assert sum(bar.rows for bar in lengths.bars) == len(examples) == lengths.measured
    for bar in lengths.bars:
        assert bar.rows == sum(bar.low <= len(e.input_ids) <= bar.high for e in examples)
    assert len(lengths.bars) <= 20
    assert all(a.high + 1 == b.low for a, b in zip(lengths.bars, lengths.bars[1:]))
    assert lengths.median <= lengths.p95 <= lengths.longest == max(len(e.input_ids) for e in examples)


def test_one_long_row_does_not_squeeze_the_others_into_a_bar() -> None:
    lengths = lengths_of([example(n, 5) for n in range(10, 40)] + [example(4000, 5)])
    assert sum(bar.rows > 0 for bar in lengths.bars) > 2


@given(EXAMPLES, st.integers(1, 1300))
def test_what_is_cut_is_what_the_preparation_cuts(examples: list[Example], max_length: int) -> None:
    kept, rows, lost = cut(examples, max_length)
    found = cut_of(examples, max_length, {STOP})
    assert (found.rows, found.answer_tokens) == (rows, lost)
    assert found.of_answer_tokens == sum(e.trained for e in examples)
    assert found.whole_answers == sum(not e.trained for e in kept)
    assert found.stops == sum(STOP in e.labels for e in kept)
    assert cut(examples, found.shortest)[1] == 0
    assert found.shortest == 1 or cut(examples, found.shortest - 1)[1] > 0
