"""Proves that parts of one buffer come to where each belongs, and nothing else is written."""

import pytest
import torch

from tunesmith.training.flat import FlatParameters

scatter = pytest.importorskip("tunesmith.kernels.fused.scatter", reason="needs triton")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_target_is_its_part_rounded_and_its_surroundings_are_left(device, dtype):
    buffer = torch.randn(4000, device=device).to(dtype).float()
    homes = [torch.full((n, 40), 7.0, device=device, dtype=dtype) for n in (300, 5, 64)]
    targets = [home[:, 8 : 8 + r] for home, r in zip(homes, (8, 3, 16))]
    offsets = [0, 2500, 2600]
    scatter.Scatter(offsets, targets)(buffer)
    for home, target, offset in zip(homes, targets, offsets):
        n, r = target.shape
        assert torch.equal(target, buffer[offset : offset + n * r].view(n, r).to(dtype))
        assert (home[:, :8] == 7).all()
        assert (home[:, 8 + r :] == 7).all()


def test_compute_copies_live_in_their_homes_and_follow_when_refreshed(device):
    parameters = [torch.nn.Parameter(torch.randn(shape, device=device)) for shape in ((3, 5), (20, 4), (7, 4))]
    rows = torch.zeros(30, 24, device=device, dtype=torch.bfloat16)
    parameters[1].home, parameters[2].home = rows[:20, 16:20], rows[20:27, 20:24]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    flat = FlatParameters(parameters, torch.bfloat16)
    for factor in (1, 3):
        with torch.no_grad():
            flat.flat.copy_((factor * flat.flat).bfloat16().float())  # the interpreter cuts bf16 off
        flat.refresh()
        for parameter in parameters:
            assert torch.equal(parameter.compute_copy, parameter.to(torch.bfloat16))
        assert torch.equal(rows[:20, 16:20], parameters[1].bfloat16())
        assert torch.equal(rows[20:27, 20:24], parameters[2].bfloat16())
        assert rows.count_nonzero() <= 20 * 4 + 7 * 4
    flat.release()
    assert not any(hasattr(parameter, "compute_copy") for parameter in parameters)


def test_a_home_of_another_type_is_left_alone(device):
    parameter = torch.nn.Parameter(torch.randn(8, 4, device=device))
    parameter.home = torch.zeros(8, 4, device=device, dtype=torch.float16)
    parameter.grad = torch.ones_like(parameter)
    FlatParameters([parameter], torch.bfloat16)
    assert parameter.compute_copy.dtype == torch.bfloat16
    assert not parameter.home.any()
