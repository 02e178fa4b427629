"""Proves that the plan keeps weights only where they fit, obeys when told, and says why."""

import dataclasses
from typing import Any

import pytest
import torch

from tunesmith.base.load import ComputeType
from tunesmith.data.packing import Pack, make_pack
from tunesmith.data.render import Example
from tunesmith.plan.memory import Shape, available_bytes, predict_memory
from tunesmith.plan.plan import PROCESS_BYTES, make_plan
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


def plan(shape: Shape = SMALL, updates: int = 4, packs: Any = None, **settings: Any) -> Any:
    return make_plan(shape, Recipe.of(settings), CPU, packs or [pack(20), pack(30)], updates)


def weighing(linear_bytes: int) -> Shape:
    """A shape whose dequantised linears take so many bytes in float32."""
    return dataclasses.replace(SMALL, linear_weights=linear_bytes // 4)


def test_weights_are_kept_where_memory_allows() -> None:
    made = plan()
    assert made.keep
    assert "memory allows" in made.reason
    assert made.memory.kept == 4 * SMALL.linear_weights


def test_weights_that_would_not_fit_are_dequantised_at_each_use() -> None:
    made = plan(weighing(2 * available_bytes(CPU.device)))
    assert not made.keep
    assert "not fit" in made.reason
    assert made.memory.kept == 0


@pytest.mark.parametrize(("wish", "keep"), [("always", True), ("never", False)])
@pytest.mark.parametrize("share", [0, 2], ids=["fits", "does not fit"])
def test_a_wish_is_obeyed_whatever_fits(wish: str, keep: bool, share: int) -> None:
    shape = weighing(share * available_bytes(CPU.device)) if share else SMALL
    made = plan(shape, dequantize=wish)
    assert (made.keep, made.reason) == (keep, "asked for")


@pytest.mark.parametrize("settings", [{"load_in_4bit": False}, {"load_in_8bit": True}])
def test_weights_that_are_not_in_4_bits_cost_nothing_more(settings: dict[str, Any]) -> None:
    made = plan(**settings)
    assert made.memory.kept == 0
    assert "not in 4 bits" in made.reason


def test_the_peak_is_that_of_the_largest_pack() -> None:
    made = plan(packs=[pack(20), pack(200), pack(30)])
    assert made.memory == predict_memory(SMALL, Recipe(), len(pack(200).input_ids), 4, keep=True)


def test_predicted_bytes_include_the_process_itself() -> None:
    made = plan()
    assert made.bytes == made.memory.total + PROCESS_BYTES
    assert made.available > 0


def test_time_grows_with_updates_and_the_work_of_each() -> None:
    big = dataclasses.replace(SMALL, linear_weights=10**9)
    once, ten = plan(big, updates=2).seconds, plan(big, updates=20).seconds
    assert once > 0
    assert 4 * once < ten < 25 * once  # ten times, but the machine is measured anew each time and may be busy
    longer = plan(big, updates=2, packs=[pack(200), pack(200)]).seconds
    assert longer > 2.5 * once  # eight times the tokens


def test_accumulation_makes_an_update_take_as_many_packs() -> None:
    big = dataclasses.replace(SMALL, linear_weights=10**9)
    assert 1.6 < plan(big, gradient_accumulation_steps=4).seconds / plan(big).seconds < 10  # four, measured anew each time
