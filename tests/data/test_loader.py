"""Proves that an epoch is every row once, in an order that the seed and the epoch's number alone decide."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.loader import Loader, computed_tokens, default_batch_size, default_split
from tunesmith.data.packing import Pack, plan_rows
from tunesmith.data.render import IGNORE, Example


def _rows(count: int) -> list[list[Example]]:
    return [[Example([n, n + 1, n + 2], [IGNORE, n + 1, n + 2], f"row {n}")] for n in range(count)]


def _order(windows: list[list[Pack]]) -> list[str]:
    return [where for packs in windows for pack in packs for where in pack.where]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("count", "batch", "accumulation"), [(1, 1, 1), (7, 2, 1), (7, 2, 2), (8, 2, 2), (5, 16, 1), (9, 1, 4)])
def test_an_epoch_holds_every_row_once(count, batch, accumulation, shuffle):
    loader = Loader(_rows(count), batch, accumulation, shuffle)
    for number in range(3):
        assert sorted(_order(list(loader.epoch(number)))) == [f"row {n}" for n in range(count)]


@pytest.mark.parametrize(
    ("count", "batch", "accumulation", "sizes"),
    [
        (7, 2, 1, [[2], [2], [2], [1]]),
        (7, 2, 2, [[2, 2], [2, 1]]),
        (8, 2, 2, [[2, 2], [2, 2]]),
        (9, 1, 4, [[1, 1, 1, 1], [1, 1, 1, 1], [1]]),
        (5, 16, 3, [[5]]),
    ],
)
def test_an_update_has_accumulation_packs_of_batch_size_rows_and_the_last_one_the_rest(count, batch, accumulation, sizes):
    loader = Loader(_rows(count), batch, accumulation)
    assert [[len(pack.where) for pack in packs] for packs in loader.epoch(0)] == sizes
    assert loader.updates_per_epoch == len(sizes)


def test_each_epoch_has_a_new_order():
    loader = Loader(_rows(20), 4)
    orders = [tuple(_order(list(loader.epoch(number)))) for number in range(4)]
    assert len(set(orders)) == 4
    assert orders[0] != tuple(f"row {n}" for n in range(20))


def test_the_seed_alone_decides_the_order():
    orders = [_order(list(Loader(_rows(20), 4, seed=seed).epoch(2))) for seed in (1, 1, 2)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


def test_the_order_of_an_epoch_does_not_depend_on_those_before_it():
    loader = Loader(_rows(20), 4)
    for number in range(3):
        list(loader.epoch(number))
    assert _order(list(loader.epoch(3))) == _order(list(Loader(_rows(20), 4).epoch(3)))


def test_batch_size_and_accumulation_share_one_order():
    wide, narrow = Loader(_rows(10), 4, 1), Loader(_rows(10), 1, 4)
    updates = [[sorted(_order([packs])) for packs in loader.epoch(1)] for loader in (wide, narrow)]
    assert updates[0] == updates[1]


def test_without_shuffling_rows_come_as_they_are():
    loader = Loader(_rows(5), 2, shuffle=False)
    assert _order(list(loader.epoch(0))) == _order(list(loader.epoch(1))) == [f"row {n}" for n in range(5)]


def test_a_pack_with_nothing_to_train_is_left_out():
    rows = [*_rows(2), [Example([1, 2], [IGNORE, IGNORE], "untrained")]]
    windows = list(Loader(rows, 1, 3, shuffle=False).epoch(0))
    assert [pack.where for pack in windows[0]] == [("row 0",), ("row 1",)]


@pytest.mark.parametrize(("shared", "tokens"), [(True, 10 + 2), (False, 2 * 11)])
def test_prefixes_are_shared_only_if_asked(shared, tokens):
    rows = [[Example([*range(10), 50 + n, 60], [IGNORE] * 11 + [60], f"row {n}")] for n in range(2)]
    ((pack,),) = Loader(rows, 2, shared_prefix=shared).epoch(0)
    assert len(pack.input_ids) == tokens


@st.composite
def _documents(draw) -> list[Example]:
    """Documents under one of a few prompts, trained at the end."""
    prompts = draw(st.lists(st.lists(st.integers(0, 3), min_size=0, max_size=30), min_size=1, max_size=3))
    made = []
    for number in range(draw(st.integers(1, 24))):
        ids = [*draw(st.sampled_from(prompts)), 4 + number, *draw(st.lists(st.integers(4, 9), min_size=1, max_size=20))]
        made.append(Example(ids, [IGNORE] * (len(ids) - 1) + ids[-1:], f"row {number}"))
    return made


@settings(max_examples=150, deadline=None)
@given(documents=_documents(), batch=st.integers(1, 6), accumulation=st.integers(1, 5), seed=st.integers(0, 5))
def test_every_example_is_trained_once_an_epoch_and_an_update_sees_the_same_ones_however_they_are_packed(
    documents, batch, accumulation, seed
):
    rows = plan_rows(documents, "bfd", max(len(d.input_ids) for d in documents))
    shared, separate = (list(Loader(rows, batch, accumulation, True, seed, flag).epoch(1)) for flag in (True, False))
    assert sorted(_order(shared)) == sorted(document.where for document in documents)
    assert [sorted(_order([packs])) for packs in shared] == [sorted(_order([packs])) for packs in separate]
    for mine, plain in zip(shared, separate):
        assert len(mine) <= len(plain)
        assert max(len(p.input_ids) for p in mine) <= max(p.tokens for p in plain)
        assert sum(len(p.input_ids) for p in mine) <= sum(len(p.input_ids) for p in plain)
        assert sum(p.tokens for p in mine) == sum(p.tokens for p in plain)


def _prompted(count: int, prompts: int, length: int = 100, own: int = 10) -> list[list[Example]]:
    rows = []
    for n in range(count):
        ids = [*range(1000 * (n % prompts), 1000 * (n % prompts) + length), *range(9000 + n, 9000 + n + own)]
        rows.append([Example(ids, [IGNORE] * (len(ids) - 1) + ids[-1:], f"row {n}")])
    return rows


def test_documents_of_an_update_that_share_a_prompt_are_put_into_one_pack():
    ((*packs,),) = Loader(_prompted(24, 3), 6, 4).epoch(0)
    assert sum(len(pack.input_ids) for pack in packs) == 3 * 100 + 24 * 9
    assert [len(pack.where) for pack in packs] == [24], "all go into the room of one micro-batch of six rows"


def test_no_pack_is_larger_than_a_micro_batch_was_without_sharing():
    ((*packs,),) = Loader(_prompted(24, 12), 4, 6).epoch(0)
    assert max(len(pack.input_ids) for pack in packs) <= 4 * 110
    assert len(packs) < 6


def test_where_nothing_is_shared_packs_are_those_of_the_rows():
    rows = _prompted(12, 12)
    shared, separate = (next(Loader(rows, 3, 4, shared_prefix=flag).epoch(0)) for flag in (True, False))
    assert [pack.where for pack in shared] == [pack.where for pack in separate]
    assert [pack.segments.lengths for pack in shared] == [pack.segments.lengths for pack in separate]


def test_the_packs_of_some_updates_stand_for_an_epoch_the_largest_among_them():
    rows = _rows(400)
    rows[77] = [Example(list(range(50)), [IGNORE] * 49 + [49], "long")]
    sample = Loader(rows, 1).sample(8)
    assert 8 <= len(sample) <= 9
    assert "long" in _order(sample)
    assert len(Loader(_rows(5), 1).sample(8)) == 5


@pytest.mark.parametrize(
    ("length", "prompt", "size"), [(64, 0, 32), (612, 0, 6), (612, 512, 32), (4096, 0, 1), (9000, 0, 1), (9000, 8990, 14)]
)
def test_the_default_batch_counts_the_tokens_that_are_computed(length, prompt, size):
    rows = [
        [Example([*range(prompt), *range(10_000 * (n + 1), 10_000 * (n + 1) + length - prompt)], [IGNORE] * (length - 1) + [7], "")]
        for n in range(40)
    ]
    assert default_batch_size(1000, computed_tokens(rows, length), 3, 1) == size


@pytest.mark.parametrize(
    ("batch", "length", "split"), [(32, 64, 1), (32, 612, 8), (6, 612, 1), (32, 4096, 32), (4, 9000, 4), (1, 9000, 1)]
)
def test_without_sharing_the_default_batch_is_split_into_equal_micro_batches(batch, length, split):
    assert default_split(batch, length) == split
