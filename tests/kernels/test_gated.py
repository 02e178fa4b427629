"""Proves that the gated activation with its own backward is the plain one, in every kind and type."""

import pytest
import torch
from transformers.activations import ACT2FN

from tunesmith.kernels.columns import neighbours, split_columns
from tunesmith.kernels.gated import KINDS, gated, gated_plain


def halves(dtype=torch.float64):
    torch.manual_seed(0)
    both = torch.randn(2, 5, 12, dtype=dtype)
    return [part.requires_grad_() for part in both.split(6, dim=-1)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_values_and_gradients_equal_the_plain_twin(kind, dtype, tolerance):
    gate, up = halves(dtype)
    fast, plain = gated(gate, up, kind), gated_plain(gate, up, kind)
    torch.testing.assert_close(fast, plain, rtol=tolerance, atol=tolerance)
    weight = torch.randn_like(plain)
    ours, theirs = (torch.autograd.grad((out * weight).sum(), (gate, up)) for out in (fast, plain))
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_that_of_finite_differences(kind):
    assert torch.autograd.gradcheck(lambda gate, up: gated(gate, up, kind), tuple(halves()))


@pytest.mark.parametrize(("kind", "name"), [("silu", "silu"), ("gelu_tanh", "gelu_pytorch_tanh"), ("gelu", "gelu")])
def test_kinds_are_those_of_transformers(kind, name):
    gate, up = halves()
    torch.testing.assert_close(gated(gate, up, kind), ACT2FN[name](gate) * up)


def test_gradients_come_back_as_one_matrix_all_the_way_to_the_stacked_input():
    both = torch.randn(7, 12, requires_grad=True)
    seen = []
    parts = split_columns(both, [6, 6])
    for part in parts:
        part.register_hook(seen.append)
    gated(*parts, "silu").sum().backward()
    joined = neighbours(seen)
    assert joined is not None
    assert torch.equal(joined, both.grad)


def test_columns_that_are_not_neighbours_are_told_apart():
    matrix = torch.randn(4, 9)
    a, b, c = matrix.split(3, dim=1)
    assert torch.equal(neighbours([a, b, c]), matrix)
    assert torch.equal(neighbours([a, b]), matrix[:, :6])
    assert neighbours([b, a]) is None
    assert neighbours([a, c]) is None
    assert neighbours([a, b.clone()]) is None
    assert neighbours([a.contiguous(), b.contiguous()]) is None
