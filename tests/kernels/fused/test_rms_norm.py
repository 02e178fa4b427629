"""Proves that the fused RMSNorm has its twin's values and autograd's gradient, for any row length and row stride."""

import pytest
import torch

fused = pytest.importorskip("tunesmith.kernels.fused.rms_norm", reason="needs triton")

SHAPES = [(7, 100), (1, 64), (33, 128), (2, 576), (3, 5000), (0, 8)]


def _inputs(shape, device, dtype):
    rows, size = shape
    x, dy = torch.randn(2, rows, size + 24, device=device).to(dtype)[..., 8 : 8 + size]  # columns of wider matrices
    return x, dy, torch.linspace(-1, 2, size, device=device).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradient_equal_the_plain_twins(device, agree, shape, offset, dtype):
    x, dy, weight = _inputs(shape, device, dtype)
    y, rstd, _ = fused.rms_norm_forward(x, weight, 1e-5, offset)
    plain_y, plain_rstd = fused.rms_norm_forward_plain(x, weight, 1e-5, offset)
    assert (y.dtype, rstd.dtype) == (dtype, torch.float32)
    agree(y, plain_y)
    agree(rstd, plain_rstd)
    dx = fused.rms_norm_backward(dy, x, weight, rstd, offset)
    agree(dx, fused.rms_norm_backward_plain(dy, x, weight, rstd, offset))
    assert dx.is_contiguous()


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_gradient_is_autograds(device, offset):
    x, dy, weight = _inputs((5, 96), device, torch.float32)
    _, rstd, _ = fused.rms_norm_forward(x, weight, 1e-3, offset)
    wide = x.double().requires_grad_()
    y = torch.nn.functional.rms_norm(wide, (96,), weight.double() + offset, 1e-3)
    (expected,) = torch.autograd.grad(y, wide, dy.double())
    actual = fused.rms_norm_backward(dy, x, weight, rstd, offset).double()
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_a_wide_weight_leaves_the_type_of_x(device, agree):
    x, dy, weight = _inputs((4, 64), device, torch.bfloat16)
    y, rstd, _ = fused.rms_norm_forward(x, weight.float(), 1e-5, 0.0)
    agree(y, fused.rms_norm_forward_plain(x, weight.float(), 1e-5, 0.0)[0])
    assert y.dtype == fused.rms_norm_backward(dy, x, weight.float(), rstd, 0.0).dtype == torch.bfloat16


def test_zero_rows_stay_zero_with_a_finite_gradient(device):
    x = torch.zeros(2, 16, device=device)
    weight = torch.ones(16, device=device)
    y, rstd, _ = fused.rms_norm_forward(x, weight, 1e-6, 0.0)
    assert torch.equal(y, x)
    assert fused.rms_norm_backward(weight.expand(2, 16), x, weight, rstd, 0.0).isfinite().all()


def test_half_precision_values_that_overflow_when_squared_are_normalised(device):
    x = torch.full((1, 8), 1000.0, dtype=torch.float16, device=device)
    y, _, _ = fused.rms_norm_forward(x, torch.ones_like(x[0]), 1e-6, 0.0)
    torch.testing.assert_close(y, torch.ones_like(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 100), (3, 2048)])
def test_the_residual_stream_beside_the_norm_is_added_both_ways(device, agree, shape, dtype):
    x, added, dy, beside = torch.randn(4, *shape, device=device).to(dtype)
    weight = torch.randn(shape[1], device=device).to(dtype)
    y, rstd, total = fused.rms_norm_forward(x, weight, 1e-5, 1.0, added)
    agree(total, x.float() + added.float())
    agree(y, fused.rms_norm_forward_plain(total, weight, 1e-5, 1.0)[0])
    dx = fused.rms_norm_backward(dy, total, weight, rstd, 1.0, beside)
    plain = fused.rms_norm_backward_plain(dy.float(), total.float(), weight.float(), rstd, 1.0)
    agree(dx, plain + beside.float())
