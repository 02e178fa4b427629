"""Proves that the rotation with its own backward is the plain one, whole or partial, and that gradients leave side by side."""

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from tunesmith.kernels.columns import neighbours
from tunesmith.kernels.rope import rotary, rotary_plain


def inputs(rotated: int = 8, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    heads = [torch.randn(5, h, 8, dtype=dtype).requires_grad_() for h in (4, 2, 2)]
    return [*heads, torch.randn(5, rotated, dtype=dtype), torch.randn(5, rotated, dtype=dtype)]


@pytest.mark.parametrize("rotated", [8, 6, 2])
def test_values_and_gradients_equal_the_plain_twin(rotated):
    given = inputs(rotated)
    fast, plain = rotary(*given), rotary_plain(*given)
    weights = [torch.randn_like(out) for out in plain]
    gradients = [torch.autograd.grad(sum((o * w).sum() for o, w in zip(outs, weights)), given[:3]) for outs in (fast, plain)]
    torch.testing.assert_close(fast, plain)
    torch.testing.assert_close(*gradients)


def test_gradient_is_that_of_finite_differences():
    q, k, v, cos, sin = inputs(6)
    assert torch.autograd.gradcheck(lambda q, k, v: rotary(q, k, v, cos, sin), (q, k, v))


def test_values_are_those_of_transformers():
    q, k, v, cos, sin = inputs()
    expected = apply_rotary_pos_emb(q.transpose(0, 1)[None], k.transpose(0, 1)[None], cos[None], sin[None])
    for ours, theirs in zip(rotary(q, k, v, cos, sin), expected):
        torch.testing.assert_close(ours.transpose(0, 1)[None], theirs)


def test_column_slices_of_one_matrix_go_in_and_their_gradients_come_back_as_one_matrix():
    torch.manual_seed(0)
    stacked = torch.randn(5, 8 * 8)
    parts = [part.unflatten(1, (-1, 8)).requires_grad_() for part in stacked.split([32, 16, 16], dim=1)]
    cos, sin = torch.randn(5, 8), torch.randn(5, 8)
    gradients = torch.autograd.grad(sum(out.sum() for out in rotary(*parts, cos, sin)), parts)
    assert neighbours([g.flatten(1) for g in gradients]) is not None
