"""Proves that packing loses no token that is trained, and that sharing prefixes changes what is computed, not what is learnt."""

from collections import Counter
from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.packing import Pack, make_pack, plan_rows
from tunesmith.data.prefix import MIN_PREFIX
from tunesmith.data.render import IGNORE, Example

Learnt = Counter[tuple[tuple[int, ...], int]]
"""What is trained: how often each token is predicted from each context."""


def _example(ids: list[int], trained: list[bool], where: str = "row") -> Example:
    return Example(ids, [token if learn else IGNORE for token, learn in zip(ids, trained)], where)


def _answer(ids: list[int], prompt: int, where: str = "row") -> Example:
    return _example(ids, [i >= prompt for i in range(len(ids))], where)


@st.composite
def _documents(draw) -> list[Example]:
    """Documents that begin with one of a few prefixes or with none, trained anywhere or nowhere."""
    token = st.integers(0, 2)
    prefixes = draw(st.lists(st.lists(token, min_size=MIN_PREFIX, max_size=14), min_size=1, max_size=3))
    documents = []
    for number in range(draw(st.integers(1, 7))):
        ids = draw(st.sampled_from([[], *prefixes])) + draw(st.lists(token, min_size=1, max_size=7))
        trained = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
        documents.append(_example(ids, trained, f"row {number}"))
    return documents


def _rows(documents: list[Example]) -> list[list[Example]]:
    return [documents[i : i + 2] for i in range(0, len(documents), 2)]


def _expected(documents: list[Example]) -> Learnt:
    return Counter(
        (tuple(d.input_ids[:i]), label) for d in documents for i, label in enumerate(d.labels) if i > 0 and label != IGNORE
    )


def _spans(pack: Pack) -> list[range]:
    ends = torch.tensor(pack.segments.lengths).cumsum(0).tolist()
    return [range(end - length, end) for end, length in zip(ends, pack.segments.lengths)]


def _contexts(pack: Pack) -> list[tuple[int, ...]]:
    """For each flat position, the tokens visible there, itself last."""
    ids, spans = pack.input_ids.tolist(), _spans(pack)
    contexts = []
    for span, parent in zip(spans, pack.segments.parents):
        inherited = [ids[i] for i in spans[parent]] if parent >= 0 else []
        contexts += [tuple(inherited + ids[span.start : i + 1]) for i in span]
    return contexts


def _learnt(pack: Pack) -> Learnt:
    contexts = _contexts(pack)
    return Counter((contexts[i], target) for i, target in zip(pack.label_index.tolist(), pack.targets.tolist()))


def _leaves(pack: Pack) -> Counter[tuple[int, ...]]:
    """The documents, each with the prefix it continues."""
    contexts, parents = _contexts(pack), set(pack.segments.parents)
    return Counter(contexts[span[-1]] for index, span in enumerate(_spans(pack)) if index not in parents)


@pytest.mark.parametrize("shared", [True, False])
@settings(max_examples=150, deadline=None)
@given(documents=_documents())
def test_every_trained_token_is_predicted_from_its_own_context_and_no_other(shared, documents):
    assert _learnt(make_pack(_rows(documents), shared)) == _expected(documents)


@pytest.mark.parametrize("shared", [True, False])
@settings(max_examples=100, deadline=None)
@given(documents=_documents())
def test_only_tokens_from_the_last_trained_one_on_are_dropped(shared, documents):
    trained = [d for d in documents if d.trained]
    last = [max(i for i, label in enumerate(d.labels) if label != IGNORE) for d in trained]
    assert _leaves(make_pack(_rows(documents), shared)) == Counter(tuple(d.input_ids[:n]) for d, n in zip(trained, last))


@settings(max_examples=100, deadline=None)
@given(documents=_documents())
def test_positions_count_from_the_start_of_the_document_whose_prefix_is_shared(documents):
    pack = make_pack(_rows(documents))
    assert pack.position_ids.tolist() == [len(context) - 1 for context in _contexts(pack)]
    assert pack.position_ids.dtype == pack.input_ids.dtype == pack.label_index.dtype == pack.targets.dtype == torch.int64


@settings(max_examples=100, deadline=None)
@given(documents=_documents())
def test_sharing_never_costs_tokens_and_every_prefix_has_at_least_two_heirs(documents):
    shared, separate = make_pack(_rows(documents)), make_pack(_rows(documents), False)
    heirs = Counter(parent for parent in shared.segments.parents if parent >= 0)
    assert all(count >= 2 for count in heirs.values())
    assert all(shared.segments.lengths[parent] >= MIN_PREFIX for parent in heirs)
    assert all(length > 0 for length in shared.segments.lengths)
    assert len(shared.input_ids) <= len(separate.input_ids)
    assert set(separate.segments.parents) <= {-1}


@settings(max_examples=60, deadline=None)
@given(documents=_documents())
def test_a_pack_counts_its_tokens_and_names_its_rows(documents):
    pack = make_pack(_rows(documents))
    assert pack.tokens == sum(len(d.input_ids) for d in documents)
    assert pack.where == tuple(d.where for d in documents if d.trained)
    assert len(pack.label_index) == len(pack.targets) == sum(d.trained for d in documents)


def test_a_prefix_of_three_documents_is_there_once():
    prefix = list(range(20))
    documents = [_answer([*prefix, 30 + n, 40 + n, 50 + n], 21) for n in range(3)]
    pack = make_pack([documents])
    assert pack.segments.lengths == (20, 2, 2, 2)
    assert pack.segments.parents == (-1, 0, 0, 0)
    assert len(make_pack([documents], shared_prefix=False).input_ids) == 3 * 22


def test_two_prefixes_are_shared_apart():
    documents = [_answer([*[first] * 10, 5 + n, 9], 10) for n in range(2) for first in (1, 2)]
    pack = make_pack([documents, [_answer([3, 4, 5], 1)]])
    assert sorted(zip(pack.segments.parents, pack.segments.lengths)) == [
        (-1, 2),
        (-1, 10),
        (-1, 10),
        (0, 1),
        (0, 1),
        (3, 1),
        (3, 1),
    ]


@pytest.mark.parametrize(("common", "parts"), [(MIN_PREFIX, 3), (MIN_PREFIX - 1, 2)])
def test_a_short_common_beginning_is_not_worth_sharing(common, parts):
    documents = [_answer([*range(common), 50 + n, 60, 61], common + 1) for n in range(2)]
    assert len(make_pack([documents]).segments.lengths) == parts


def test_a_trained_token_of_the_prefix_counts_once_for_every_document():
    documents = [_answer([*range(12), 50 + n, 60], 4) for n in range(3)]
    pack = make_pack([documents])
    assert pack.segments.parents == (-1, 0, 0, 0)
    assert Counter(pack.label_index.tolist())[5] == 3
    assert _learnt(pack) == _expected(documents)


def test_identical_documents_are_each_trained():
    documents = [_answer(list(range(12)), 6)] * 3
    assert _learnt(make_pack([documents])) == _expected(documents)


def test_rows_without_a_trained_token_make_an_empty_pack():
    pack = make_pack([[_answer([1, 2, 3], 3)]])
    assert pack.segments.lengths == ()
    assert len(pack.input_ids) == len(pack.position_ids) == len(pack.targets) == 0


def test_moving_a_pack_changes_nothing_in_it():
    pack = make_pack([[_answer([*range(12), 50 + n, 60], 4) for n in range(3)]])
    moved = pack.to(torch.device("cpu"))
    assert _learnt(moved) == _learnt(pack)
    assert (moved.segments, moved.tokens, moved.where) == (pack.segments, pack.tokens, pack.where)


def _plain(lengths: list[int]) -> list[Example]:
    return [_answer([number] * length, 1, f"row {number}") for number, length in enumerate(lengths)]


@settings(max_examples=150, deadline=None)
@given(lengths=st.lists(st.integers(1, 12), max_size=30), strategy=st.sampled_from(["bfd", "none"]))
def test_every_example_is_in_exactly_one_row(lengths, strategy):
    examples = _plain(lengths)
    rows = plan_rows(examples, strategy, 12)
    assert sorted(e.where for e in chain.from_iterable(rows)) == sorted(e.where for e in examples)
    assert all(rows)


@settings(max_examples=150, deadline=None)
@given(lengths=st.lists(st.integers(1, 12), max_size=30))
def test_best_fit_rows_never_exceed_max_length_and_no_two_could_be_one(lengths):
    sizes = sorted(sum(len(e.input_ids) for e in row) for row in plan_rows(_plain(lengths), "bfd", 12))
    assert all(size <= 12 for size in sizes)
    assert len(sizes) < 2 or sizes[0] + sizes[1] > 12


def test_best_fit_takes_the_longest_first_into_the_fullest_row_that_has_room():
    rows = plan_rows(_plain([3, 6, 7, 4, 2, 3]), "bfd", 10)
    assert [[len(e.input_ids) for e in row] for row in rows] == [[7, 3], [6, 4], [3, 2]]
    assert [e.where for e in chain.from_iterable(rows) if len(e.input_ids) == 3] == ["row 0", "row 5"]


def test_without_packing_the_order_is_kept():
    examples = _plain([3, 6, 2])
    assert plan_rows(examples, "none", 4) == [[example] for example in examples]


@settings(max_examples=100, deadline=None)
@given(documents=_documents(), max_length=st.integers(1, 9))
def test_wrapped_rows_are_the_stream_of_tokens_cut_at_max_length(documents, max_length):
    rows = plan_rows(documents, "wrapped", max_length)
    assert all(len(row) == 1 for row in rows)
    lengths = [len(row[0].input_ids) for row in rows]
    assert set(lengths[:-1]) <= {max_length}
    assert 0 < lengths[-1] <= max_length
    for field in ("input_ids", "labels"):
        whole = list(chain.from_iterable(getattr(d, field) for d in documents))
        assert list(chain.from_iterable(getattr(row[0], field) for row in rows)) == whole


@pytest.mark.parametrize("strategy", ["bfd", "wrapped", "none"])
def test_no_example_makes_no_row(strategy):
    assert plan_rows([], strategy, 8) == []


def test_a_padded_pack_has_the_sizes_asked_for_and_the_loss_of_its_own():
    from tunesmith.data.packing import make_pack, pad_pack
    from tunesmith.kernels.attention import segment_attention_plain

    documents = [Example([*range(9), i, 7], [IGNORE] * 9 + [i, 7], "row") for i in range(20, 24)]
    pack = make_pack([documents])
    padded = pad_pack(pack, len(pack.input_ids) + 5, len(pack.targets) + 3, 9)
    assert len(padded.input_ids) == len(padded.position_ids) == sum(padded.segments.lengths) == len(pack.input_ids) + 5
    assert padded.targets[-3:].tolist() == [IGNORE] * 3
    assert torch.equal(padded.targets[:-3], pack.targets)
    assert padded.segments.blocks == 9
    q = torch.randn(len(padded.input_ids), 2, 4)
    kept = slice(0, len(pack.input_ids))
    whole = segment_attention_plain(q, q, q, padded.segments, scaling=0.5)
    assert torch.equal(whole[kept], segment_attention_plain(q[kept], q[kept], q[kept], pack.segments, scaling=0.5))
    assert pad_pack(pack, len(pack.input_ids), len(pack.targets), 9).segments.lengths == pack.segments.lengths
