"""Proves that the fused gated activations have torch's values and gradients, as columns of one matrix."""

import pytest
import torch

fused = pytest.importorskip("tunesmith.kernels.fused.gated", reason="needs triton")

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # numpy's, in the interpreter

SHAPES = [(7, 100), (1, 1), (3, 1500), (0, 8)]


def _inputs(shape, device, dtype):
    rows, size = shape
    wide = torch.randn(rows, 2 * size + 16, device=device).mul_(3).to(dtype)
    d = torch.randn(rows, size + 8, device=device).to(dtype)[:, 8:]
    return d, wide[:, :size], wide[:, size : 2 * size]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", fused.KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_equal_the_plain_twins(device, agree, shape, kind, dtype):
    d, gate, up = _inputs(shape, device, dtype)
    y = fused.gated_forward(gate, up, kind)
    assert (y.dtype, y.is_contiguous()) == (dtype, True)
    agree(y, fused.gated_forward_plain(gate, up, kind))
    joined = fused.gated_backward(d, gate, up, kind)
    assert (joined.shape, joined.dtype) == ((shape[0], 2 * shape[1]), dtype)
    agree(joined, fused.gated_backward_plain(d, gate, up, kind))


@pytest.mark.parametrize("kind", fused.KINDS)
def test_large_gates_neither_overflow_nor_lose_their_slope(device, kind):
    gate = torch.tensor([[-1e4, -200.0, -20.0, 0.0, 20.0, 200.0, 1e4]], device=device)
    ones = torch.ones_like(gate)
    torch.testing.assert_close(fused.gated_forward(gate, ones, kind), gate.relu(), rtol=1e-6, atol=1e-6)
    slope = fused.gated_backward(ones, gate, ones, kind)[:, :7]
    torch.testing.assert_close(slope, torch.tensor([[0, 0, 0, 0.5, 1, 1, 1]], device=device), rtol=1e-6, atol=1e-6)


def test_an_unknown_kind_is_refused(device):
    x = torch.ones(1, 4, device=device)
    with pytest.raises(AssertionError):
        fused.gated_forward(x, x, "relu")
