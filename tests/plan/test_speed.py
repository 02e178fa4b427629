"""Proves that counted operations are the products a step makes, and that the machine's speed is measured."""

import time

import pytest
import torch

from tunesmith.plan.memory import Shape
from tunesmith.plan.speed import SHARE_OF_STEP, flops, measure_flops

SHAPE = Shape(
    linear_weights=1000,
    other_parameters=0,
    buffer_bytes=0,
    linears=(("q", 10, 100),),
    hidden=10,
    vocab=50,
    layers=1,
    positions=64,
)


def test_a_token_costs_forward_and_input_gradient_of_every_linear() -> None:
    assert flops(SHAPE, inputs=7, labels=0) == 7 * (2 * 1000 + 2 * 1000)


def test_a_label_costs_forward_and_gradient_of_the_head() -> None:
    assert flops(SHAPE, inputs=0, labels=3) == 3 * (2 + 2) * 50 * 10


def test_checkpointing_costs_one_more_forward_of_the_linears() -> None:
    assert flops(SHAPE, 7, 3, True) - flops(SHAPE, 7, 3, False) == 7 * 2 * 1000


def test_operations_add_up_over_packs() -> None:
    assert flops(SHAPE, 7, 3) + flops(SHAPE, 5, 2) == flops(SHAPE, 12, 5)


def test_the_share_of_products_is_a_share() -> None:
    assert all(0 < share <= 1 for share in SHARE_OF_STEP.values())


def test_the_machine_is_measured_in_a_plausible_rate_and_about_the_time_given() -> None:
    start = time.perf_counter()
    rate = measure_flops(torch.device("cpu"), torch.float32, 64, seconds=0.05)
    assert 1e8 < rate < 1e15
    assert time.perf_counter() - start < 5


def test_even_no_time_at_all_gives_a_measurement() -> None:
    assert measure_flops(torch.device("cpu"), torch.float32, 64, seconds=0) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_compute_type_can_be_measured(dtype: torch.dtype) -> None:
    assert measure_flops(torch.device("cpu"), dtype, 64, seconds=0) > 0
