"""Proves which packs a captured update takes, and that what it pads them to changes nothing (the capture itself: tests/gpu)."""

import pytest

from tunesmith.data.packing import make_pack
from tunesmith.data.render import IGNORE, Example
from tunesmith.training.graph import ROOM, _Sizes


def pack(*lengths):
    ids = iter(range(5, 10_000))
    rows = []
    for length in lengths:
        tokens = [next(ids) for _ in range(length)]
        rows.append([Example(tokens, [IGNORE, *tokens[1:]], "row")])
    return make_pack(rows)


def test_rows_that_are_all_alike_are_not_padded():
    given = pack(*[64] * 16)
    sizes = _Sizes.around(given)
    assert (sizes.tokens, sizes.labels) == (16 * 63, 16 * 63)
    assert sizes.pad(given).segments.lengths == given.segments.lengths


@pytest.mark.parametrize("lengths", [(64,) * 4, (20, 33, 41, 17, 25), (5, 5, 70)])
def test_a_pack_fits_its_own_sizes_and_comes_out_with_them(lengths):
    given = pack(*lengths)
    sizes = _Sizes.around(given)
    assert sizes.fit(given)
    padded = sizes.pad(given)
    assert len(padded.input_ids) == len(padded.position_ids) == sizes.tokens
    assert len(padded.label_index) == len(padded.targets) == sizes.labels
    assert sum(padded.segments.lengths) == sizes.tokens


def test_a_pack_of_other_documents_and_about_the_size_fits():
    sizes = _Sizes.around(pack(*range(20, 52)))
    assert sizes.fit(pack(*range(51, 19, -1)))
    assert sizes.fit(pack(*range(20, 51), 40))


def test_a_larger_pack_and_one_that_would_waste_too_much_do_not():
    sizes = _Sizes.around(pack(*range(20, 52)))
    assert not sizes.fit(pack(*range(22, 54)))
    assert not sizes.fit(pack(*range(20, 40)))
    assert 0 < ROOM < 0.1
