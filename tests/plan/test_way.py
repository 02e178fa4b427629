"""Proves that every way of the ladder makes the same updates on paper, and that what the user named is kept to."""

import pytest

from tunesmith.plan.way import Way, ways
from tunesmith.recipe import Recipe


def recipe(**settings):
    return Recipe.of({"per_device_train_batch_size": 12, "gradient_accumulation_steps": 2, **settings})


@pytest.mark.parametrize("on_gpu", [True, False])
def test_every_way_keeps_the_rows_of_an_update(on_gpu):
    for way in ways(recipe(), on_gpu):
        made = way.of(recipe())
        assert made.per_device_train_batch_size * made.gradient_accumulation_steps == 24
        assert made.per_device_train_batch_size >= 1


def test_a_batch_is_only_split_evenly():
    assert {way.split for way in ways(recipe(), True)} == {1, 2, 4}


def test_a_way_written_into_a_recipe_leaves_nothing_open():
    for way in ways(recipe(), True):
        made = way.of(recipe())
        assert "auto" not in (made.dequantize, made.gradient_checkpointing, made.activation_offloading, made.offload_base)
        assert [w for w in ways(made, True) if w.split == 1] == [Way(way.keep, way.recompute, way.host_activations, way.stream)]


@pytest.mark.parametrize(
    ("settings", "check"),
    [
        ({"dequantize": "never"}, lambda way: not way.keep),
        ({"gradient_checkpointing": True}, lambda way: way.recompute),
        ({"gradient_checkpointing": False}, lambda way: not way.recompute and not way.stream),
        ({"offload_base": "always"}, lambda way: way.stream),
        ({"offload_base": "never"}, lambda way: not way.stream),
        ({"activation_offloading": True}, lambda way: way.host_activations),
    ],
)
def test_what_the_user_named_is_kept_to(settings, check):
    found = list(ways(recipe(**settings), True))
    assert found
    assert all(check(way) for way in found)


def test_a_cpu_neither_streams_nor_offloads():
    assert not any(way.stream or way.host_activations for way in ways(recipe(), False))


@pytest.mark.parametrize(
    "settings", [{"load_in_4bit": False}, {"load_in_4bit": False, "dequantize": "never"}, {"load_in_8bit": True}]
)
def test_without_4_bits_there_is_nothing_to_dequantise_or_stream(settings):
    found = list(ways(recipe(**settings), True))
    assert found
    assert all(way.keep and not way.stream for way in found)


@pytest.mark.parametrize(
    "settings",
    [{"offload_base": "always", "gradient_checkpointing": False}, {"offload_base": "always", "dequantize": "always"}],
)
def test_settings_that_contradict_each_other_leave_no_way(settings):
    assert not list(ways(recipe(**settings), True))


def test_layers_are_recomputed_wherever_their_weights_come_and_go():
    assert all(way.recompute and not way.keep for way in ways(recipe(), True) if way.stream)


def test_ways_are_named_for_a_reader():
    assert str(Way(True)) == "weights kept"
    assert str(Way(False, True, True, True, 4)) == (
        "base streamed from the host, layers recomputed, activations on the host, micro-batch split in 4"
    )
