"""Proves that the plan keeps weights only where they fit, obeys when told, and says why."""

import dataclasses
from typing import Any

import pytest
import torch

from tunesmith.base.load import ComputeType
from tunesmith.data.packing import Pack, make_pack
from tunesmith.data.render import Example
from tunesmith.data.sizes import Ladder
from tunesmith.errors import MachineError
from tunesmith.kernels.fused import attention_tiles
from tunesmith.plan.machine import available_bytes
from tunesmith.plan.memory import Shape, predict_memory
from tunesmith.plan.plan import PROCESS_BYTES, _micro_batch, _padded, _rotates_inside, make_plan
from tunesmith.plan.speed import Speed, step_seconds
from tunesmith.plan.way import Way
from tunesmith.recipe import Recipe

CPU = ComputeType(torch.device("cpu"), torch.float32, "a test")
SMALL = Shape(
    linear_weights=73728,
    other_parameters=38720,
    buffer_bytes=64,
    linears=(("q_proj", 64, 64),),
    hidden=64,
    vocab=300,
    layers=2,
    positions=256,
)


def pack(tokens: int) -> Pack:
    return make_pack([[Example(list(range(tokens)), [-100, *range(1, tokens)], "row")]])


def plan(shape: Shape = SMALL, updates: int = 4, packs: Any = None, compute: ComputeType = CPU, **settings: Any) -> Any:
    filled = {"per_device_train_batch_size": 4, "max_length": 32, **settings}
    return make_plan(shape, Recipe.of(filled), compute, packs or [pack(20), pack(30)], updates)


def weighing(linear_bytes: int) -> Shape:
    """A shape whose dequantised linears take so many bytes in float32."""
    return dataclasses.replace(SMALL, linear_weights=linear_bytes // 4)


def test_weights_are_kept_where_memory_allows() -> None:
    made = plan()
    assert made.keep
    assert made.chosen.fits
    assert made.reason.startswith("the fastest")
    assert made.memory.kept == 4 * SMALL.linear_weights


def test_weights_that_would_not_fit_are_dequantised_at_each_use() -> None:
    made = plan(weighing(2 * available_bytes(CPU.device)))
    assert not made.keep
    assert made.reason == "the fastest that fits"
    assert made.memory.kept == 0


@pytest.mark.parametrize(("wish", "keep"), [("always", True), ("never", False)])
@pytest.mark.parametrize("share", [0, 2], ids=["fits", "does not fit"])
def test_a_wish_is_obeyed_whatever_fits(wish: str, keep: bool, share: int) -> None:
    shape = weighing(share * available_bytes(CPU.device)) if share else SMALL
    made = plan(shape, dequantize=wish)
    assert made.keep == keep
    assert all(row.way.keep == keep for row in made.rows)


def test_when_nothing_is_sure_to_fit_the_leanest_way_is_taken_and_the_reason_says_so() -> None:
    made = plan(memory="1MB")
    assert made.bytes == min(row.bytes for row in made.rows)
    assert "nothing is sure to fit" in made.reason


@pytest.mark.parametrize("settings", [{"offload_base": "always"}, {"activation_offloading": True}])
def test_what_needs_a_gpu_is_refused_on_a_cpu(settings: dict[str, Any]) -> None:
    with pytest.raises(MachineError, match="no way to run this as asked"):
        plan(**settings)


def test_memory_stands_for_what_is_free_to_the_byte() -> None:
    bytes_of_the_fastest = plan().bytes
    assert plan(memory=str(bytes_of_the_fastest)).bytes == bytes_of_the_fastest
    less = plan(memory=str(bytes_of_the_fastest - 1))
    assert less.chosen.fits
    assert less.bytes < bytes_of_the_fastest


@pytest.mark.parametrize("settings", [{"load_in_4bit": False}, {"load_in_8bit": True}])
def test_weights_that_are_not_in_4_bits_cost_nothing_more(settings: dict[str, Any]) -> None:
    made = plan(**settings)
    assert made.memory.kept == 0
    assert all(row.way.keep and not row.way.stream for row in made.rows)


def test_the_peak_is_that_of_the_largest_pack() -> None:
    made = plan(packs=[pack(20), pack(200), pack(30)], gradient_checkpointing=False)
    recipe = Recipe.of({"gradient_checkpointing": False})
    assert made.memory == predict_memory(SMALL, recipe, len(pack(200).input_ids), 4, keep=True)


@pytest.mark.parametrize("split", [1, 2, 4])
@pytest.mark.parametrize("seed", range(6))
def test_no_micro_batch_of_a_split_batch_is_padded_to_more_than_was_planned(seed: int, split: int) -> None:
    lengths = torch.randint(2 if seed % 2 else 29, 33, (48,), generator=torch.Generator().manual_seed(seed)).tolist()
    rows = [[Example(list(range(n)), [-100, *range(1, n)], "row")] for n in lengths]
    recipe, way = Recipe.of({"per_device_train_batch_size": 8, "max_length": 32}), Way(True, False, False, False, split)
    whole = [make_pack(rows[first : first + 8]) for first in range(0, 48, 8)][: 1 if seed > 3 else 6]
    parts = [make_pack(rows[first : first + 8 // split]) for first in range(0, 8 * len(whole), 8 // split)]
    tokens, labels = _padded(whole, *_micro_batch(recipe, whole, way), way)
    made = [Ladder.through(parts[0]).sizes(part) for part in parts]
    assert max(each.tokens for each in made) <= tokens
    assert max(each.labels for each in made) <= labels


def test_predicted_bytes_include_the_process_itself() -> None:
    made = plan()
    assert made.bytes == made.memory.total + PROCESS_BYTES
    assert made.available > 0


def test_time_grows_with_updates_and_the_work_of_each() -> None:
    big = dataclasses.replace(SMALL, linear_weights=10**9)
    once, ten = plan(big, updates=2).seconds, plan(big, updates=20).seconds
    assert once > 0
    assert 4 * once < ten < 25 * once  # ten times, but the machine is measured anew each time and may be busy


SPEED = Speed(flops=1e11, copy=1e10, share=0.5)


def test_more_tokens_and_more_micro_batches_take_longer() -> None:
    big = dataclasses.replace(SMALL, linear_weights=10**9)
    seconds = step_seconds(big, 100, 50, Way(True), SPEED, 4, 1)
    assert step_seconds(big, 400, 50, Way(True), SPEED, 4, 1) > 1.4 * seconds
    assert step_seconds(big, 100, 50, Way(True), SPEED, 4, 4) > 1.2 * seconds


def test_each_saving_of_memory_costs_time() -> None:
    big = dataclasses.replace(SMALL, linear_weights=10**9)
    rungs = [
        Way(True),
        Way(False),
        Way(False, recompute=True),
        Way(False, recompute=True, host_activations=True),
        Way(False, recompute=True, host_activations=True, stream=True),
    ]
    seconds = [step_seconds(big, 1000, 500, way, SPEED, 2, 1) for way in rungs]
    assert seconds == sorted(seconds)
    assert len(set(seconds)) == len(seconds)


def test_a_plan_for_heads_that_no_block_of_the_kernels_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma's heads of 256 in fp32 on a T4: its attention is not the kernels', so nothing is rotated inside them."""
    monkeypatch.setattr(attention_tiles, "shared_memory", lambda device: 64 * 1024)
    wide, t4 = dataclasses.replace(SMALL, rotary_width=256), ComputeType(torch.device("cuda"), torch.float32, "a test")
    assert attention_tiles.largest_block(256, t4.dtype, t4.device) == 0
    assert not _rotates_inside(pack(20), wide, t4)
