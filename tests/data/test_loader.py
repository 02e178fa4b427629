"""Proves that an epoch is every row once, in an order that the seed and the epoch's number alone decide."""

import pytest

from tunesmith.data.loader import Loader
from tunesmith.data.packing import Pack
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
