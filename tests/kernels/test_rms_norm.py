"""Proves that the hand-written RMSNorm has torch's values and autograd's gradients in every type it is used in."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.kernels.rms_norm import residual_rms_norm, rms_norm, rms_norm_plain

SHAPES = [(6,), (3, 6), (2, 3, 6)]


def _inputs(shape: tuple[int, ...], dtype=torch.float64) -> tuple[Tensor, Tensor]:
    x = torch.randn(*shape, dtype=torch.float64).to(dtype).requires_grad_()
    return x, torch.linspace(-1, 2, shape[-1], dtype=torch.float64).to(dtype)


def _value_and_gradient(function, x: Tensor, weight: Tensor, eps: float = 1e-3) -> tuple[Tensor, Tensor]:
    y = function(x, weight, eps)
    direction = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y).to(y.dtype)
    return y, torch.autograd.grad((y * direction).sum(), x)[0]


@pytest.mark.parametrize("eps", [1e-6, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_is_that_of_finite_differences(shape, eps):
    x, weight = _inputs(shape)
    assert torch.autograd.gradcheck(lambda x: rms_norm(x, weight, eps), x)


@pytest.mark.parametrize("adds", [True, False])
def test_the_gradients_of_norm_and_stream_meet(adds):
    x, weight = _inputs((3, 6))
    added = torch.randn(3, 6, dtype=torch.float64).requires_grad_()

    def both(x, added):
        return residual_rms_norm(x, added if adds else None, weight, 1e-3, 1.0)

    stream, normed = both(x, added)
    assert torch.equal(stream, x + added if adds else x)
    assert torch.equal(normed, rms_norm(stream.detach(), weight, 1e-3, 1.0))
    assert torch.autograd.gradcheck(both, (x, added)) if adds else torch.autograd.gradcheck(lambda x: both(x, None), x)
    assert torch.autograd.gradcheck(lambda x, added: both(x, added)[0], (x, added)), "the stream alone"


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradient_equal_the_plain_twin(shape, dtype, tolerance):
    x, weight = _inputs(shape, dtype)
    fast, plain = _value_and_gradient(rms_norm, x, weight), _value_and_gradient(rms_norm_plain, x, weight)
    torch.testing.assert_close(fast, plain, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight_dtype", [None, torch.float32], ids=["weight as x", "weight wide"])
def test_half_precision_keeps_its_type_and_fp32_statistics(dtype, weight_dtype):
    x, weight = _inputs((3, 64), dtype)
    weight = weight.to(weight_dtype or dtype)
    y, gradient = _value_and_gradient(rms_norm, x, weight)
    wide_y, wide_gradient = _value_and_gradient(rms_norm_plain, x.detach().double().requires_grad_(), weight.double())
    assert (y.dtype, gradient.dtype) == (dtype, dtype)
    torch.testing.assert_close(y.double(), wide_y, rtol=0.01, atol=0.01)
    torch.testing.assert_close(gradient.double(), wide_gradient, rtol=0.03, atol=0.03)


def test_values_that_overflow_half_precision_when_squared_are_normalised():
    x = torch.full((1, 8), 1000.0, dtype=torch.float16)
    torch.testing.assert_close(rms_norm(x, torch.ones(8, dtype=torch.float16), 1e-6), torch.ones(1, 8, dtype=torch.float16))


@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradient_are_torchs(shape):
    x, weight = _inputs(shape)
    torchs = _value_and_gradient(lambda x, weight, eps: F.rms_norm(x, weight.shape, weight, eps), x, weight)
    torch.testing.assert_close(_value_and_gradient(rms_norm, x, weight), torchs, rtol=1e-10, atol=1e-10)


def test_a_zero_row_stays_zero_with_a_finite_gradient():
    x = torch.zeros(1, 4, requires_grad=True)
    y, gradient = _value_and_gradient(rms_norm, x, torch.ones(4), eps=1e-6)
    assert torch.equal(y, torch.zeros(1, 4))
    assert gradient.isfinite().all()


def test_inputs_are_left_as_they_were():
    x, weight = _inputs((3, 6))
    before = x.detach().clone(), weight.clone()
    _value_and_gradient(rms_norm, x, weight)
    assert torch.equal(before[0], x)
    assert torch.equal(before[1], weight)
