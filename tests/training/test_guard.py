"""Proves that each hard stop stops what it should, names it, and lets good training pass."""

import pytest
import torch
from torch.nn import Parameter

from tunesmith.errors import MachineError, TrainingError
from tunesmith.training import guard
from tunesmith.training.guard import (
    check_changed,
    check_gradients,
    check_held_out,
    check_loss,
    check_norm,
    check_saved,
    ran_out_of_memory,
    working_device,
)  # fmt: skip
from tunesmith.training.state import host_copy

BAD = [float("nan"), float("inf"), float("-inf")]


def adapter() -> dict[str, Parameter]:
    return {"layer.lora_A": Parameter(torch.randn(2, 4)), "layer.lora_B": Parameter(torch.zeros(4, 2))}


@pytest.mark.parametrize("loss", BAD)
def test_a_loss_that_is_not_finite_stops_with_update_and_rows(loss: float) -> None:
    with pytest.raises(TrainingError) as caught:
        check_loss(loss, 7, ["a.jsonl line 3"])
    assert str(loss) in caught.value.what
    assert "update 7" in caught.value.what
    assert "a.jsonl line 3" in caught.value.what
    assert "not updated" in caught.value.what


def test_of_many_rows_the_first_three_are_named_and_the_rest_counted() -> None:
    with pytest.raises(TrainingError, match="line 1, line 2, line 3 and 2 more") as caught:
        check_loss(float("nan"), 1, [f"line {n}" for n in range(1, 6)])
    assert "line 4" not in caught.value.what


@pytest.mark.parametrize("loss", [0.0, 1.5, 1e30])
def test_a_finite_loss_passes(loss: float) -> None:
    check_loss(loss, 1, ["row"])


def test_a_tensor_without_gradient_stops_and_is_named() -> None:
    parameters = adapter()
    parameters["layer.lora_B"].grad = torch.zeros(4, 2)
    with pytest.raises(TrainingError, match=r"1 of 2 adapter tensors got no gradient at update 1, first layer\.lora_A"):
        check_gradients(parameters, 1)


def test_a_gradient_of_zeros_is_a_gradient() -> None:
    parameters = adapter()  # at the first update B is zero, so A's gradient is too
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    check_gradients(parameters, 1)


@pytest.mark.parametrize("norm", BAD)
def test_a_gradient_norm_that_is_not_finite_stops(norm: float) -> None:
    with pytest.raises(TrainingError, match="update 9"):
        check_norm(norm, 9)


def test_a_finite_norm_passes() -> None:
    check_norm(0.0, 1)
    check_norm(1e20, 1)


def test_an_adapter_as_it_was_stops() -> None:
    parameters = adapter()
    with pytest.raises(TrainingError, match="the same after training as before"):
        check_changed(host_copy(parameters), parameters)


def test_a_change_in_one_tensor_is_enough() -> None:
    parameters = adapter()
    before = host_copy(parameters)
    with torch.no_grad():
        parameters["layer.lora_B"][0, 0] = 1e-8
    check_changed(before, parameters)


@pytest.mark.parametrize("value", BAD)
def test_an_adapter_that_is_not_finite_at_the_end_stops_and_is_named(value: float) -> None:
    parameters = adapter()
    before = host_copy(parameters)
    with torch.no_grad():
        parameters["layer.lora_B"][3, 1] = value
    with pytest.raises(TrainingError, match=r"layer\.lora_B is not finite"):
        check_changed(before, parameters)


def test_a_snapshot_is_a_copy() -> None:
    parameters = adapter()
    before = host_copy(parameters)
    with torch.no_grad():
        parameters["layer.lora_B"].add_(1)
    assert not before["layer.lora_B"].any()
    assert not before["layer.lora_A"].requires_grad


@pytest.mark.parametrize("loss", BAD)
def test_a_held_out_loss_that_is_not_finite_stops(loss: float) -> None:
    with pytest.raises(TrainingError, match="after update 4"):
        check_held_out(loss, 4)
    check_held_out(3.5, 4)


@pytest.mark.parametrize("value", BAD)
def test_a_state_that_is_not_finite_is_not_saved(value: float) -> None:
    tensors = host_copy(adapter())
    check_saved(tensors, 3)
    tensors["layer.lora_B"][1, 1] = value
    with pytest.raises(TrainingError, match=r"layer\.lora_B is not finite after update 3; it was not saved"):
        check_saved(tensors, 3)


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_running_out_of_memory_looks_like(error: Exception, memory: bool) -> None:
    assert ran_out_of_memory(error) == memory


def test_only_a_gpu_that_failed_is_told_as_that() -> None:
    said = r"The GPU failed \(CUDA error: device-side assert triggered\)\. Once it works again, go on"
    with pytest.raises(MachineError, match=said), working_device("go on"):
        raise torch.AcceleratorError("CUDA error: device-side assert triggered\nCUDA kernel errors might be …")
    for other in ("size mismatch", "CUDA error: out of memory"):
        with pytest.raises(RuntimeError, match=other), working_device("go on"):
            raise RuntimeError(other)


def test_losses_that_stay_worse_than_guessing_are_a_divergence():
    seen = guard.Divergence(49_152)
    for step, loss in enumerate((3.0, 11.0, 12.0, 2.0, 11.0, 30.0), 1):
        seen.check(loss, step)
    with pytest.raises(TrainingError, match=r"was 3\.0 at first and is 10\.8 at update 7.* 49,152 tokens"):
        seen.check(10.8, 7)


def test_a_model_that_knew_nothing_at_first_has_not_diverged():
    seen = guard.Divergence(300)
    for step in range(1, 20):
        seen.check(5.9 + step % 3, step)


def test_a_resumed_run_is_measured_by_its_first_loss():
    resumed = guard.Divergence(49_152, first=2.0)
    resumed.check(11.0, 13)
    resumed.check(11.0, 14)
    with pytest.raises(TrainingError, match=r"was 2\.0 at first"):
        resumed.check(11.0, 15)
