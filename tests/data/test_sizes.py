"""Proves what packs are padded to on a GPU, and that it changes neither documents nor targets (the capture: tests/gpu)."""

import random

import pytest
import torch

from tunesmith.data.packing import make_pack
from tunesmith.data.render import IGNORE, Example
from tunesmith.data.sizes import LABELS, ROOM, STEP, Ladder


def pack(*lengths):
    ids = iter(range(5, 100_000))
    rows = []
    for length in lengths:
        tokens = [next(ids) for _ in range(length)]
        rows.append([Example(tokens, [IGNORE, *tokens[1:]], "row")])
    return make_pack(rows)


def test_rows_that_are_all_alike_are_not_padded():
    given = pack(*[64] * 16)
    sizes = Ladder.through(pack(*[64] * 16)).sizes(given)
    assert (sizes.tokens, sizes.labels) == (16 * 63, 16 * 63)
    assert sizes.pad(given).segments.lengths == given.segments.lengths


@pytest.mark.parametrize("lengths", [(64,) * 4, (20, 33, 41, 17, 25), (5, 5, 70)])
def test_a_padded_pack_has_its_documents_and_targets_and_then_nothing(lengths):
    given = pack(*lengths)
    sizes = Ladder.through(pack(30, 40)).sizes(given)
    padded, tokens, labels = sizes.pad(given), len(given.input_ids), len(given.targets)
    assert len(padded.input_ids) == len(padded.position_ids) == sum(padded.segments.lengths) == sizes.tokens
    assert len(padded.label_index) == len(padded.targets) == sizes.labels
    assert torch.equal(padded.input_ids[:tokens], given.input_ids)
    assert torch.equal(padded.targets[:labels], given.targets)
    assert (padded.targets[labels:] == IGNORE).all()
    assert padded.segments.lengths[: len(given.segments.lengths)] == given.segments.lengths


def test_packs_about_as_large_as_the_first_share_its_sizes():
    first = pack(*range(20, 52))
    ladder = Ladder.through(first)
    assert ladder.sizes(pack(*range(51, 19, -1))) == ladder.sizes(first)
    assert ladder.sizes(pack(*range(20, 51), 40)) == ladder.sizes(pack(*range(20, 50), 30, 44, 17))


def test_packs_of_one_document_share_few_sizes():
    ladder = Ladder.through(pack(700))
    assert len({ladder.sizes(pack(length)) for length in range(500, 900, 3)}) <= 12


def test_no_pack_is_padded_by_more_than_a_step():
    draw = random.Random(0)
    ladder = Ladder.through(pack(*range(20, 52)))
    for _ in range(200):
        given = pack(*(draw.randint(3, 90) for _ in range(draw.randint(2, 60))))
        sizes = ladder.sizes(given)
        assert len(given.input_ids) <= sizes.tokens <= len(given.input_ids) * (1 + STEP) + 1
        assert len(given.targets) <= sizes.labels <= len(given.targets) * (1 + LABELS * STEP) + 1
        sizes.pad(given)
    assert 0 < ROOM < STEP


def test_what_a_pack_is_padded_to_does_not_depend_on_the_packs_before():
    """Nor on what a resumed run has captured: the ladder knows the first pack alone."""
    one, other = Ladder.through(pack(9, 12, 30)), Ladder.through(pack(9, 12, 30))
    packs = [pack(7, 20, n) for n in range(3, 40)]
    assert [one.sizes(p) for p in packs] == [other.sizes(p) for p in reversed(packs)][::-1]
