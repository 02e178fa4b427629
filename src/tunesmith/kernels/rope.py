"""Rotary position embedding of queries and keys, with a hand-written backward: ``y = x · cos + rotate_half(x) · sin``.

Su et al. 2021 (arXiv 2104.09864), in the half-split form of GPT-NeoX and Llama. A rotation's gradient is its transpose.
Autograd's own chain through slicing, negating and concatenating takes four times as many passes over memory; and the
three gradients leave here as columns of one matrix, so that the stacked q, k, v linear reads them in one product.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tunesmith.kernels.columns import empty_columns


def rotary(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys rotated to their positions; values pass through (their gradient joins the other two).

    Args:
        q: ``[T, H, D]``; k, v: ``[T, H_kv, D]``; any stride between tokens, a token's heads side by side.
        cos, sin: ``[T, R]`` with R ≤ D: only the first R of a head's D numbers are rotated (partial rotary).
    """
    return _Rotary.apply(q, k, v, cos, sin)


def rotary_plain(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The plain twin of `rotary`."""

    def rotate(x: Tensor) -> Tensor:
        turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
        first, second = turned.chunk(2, dim=-1)
        half = torch.cat([-second, first], dim=-1)
        return torch.cat([turned * cos.unsqueeze(1) + half * sin.unsqueeze(1), rest], dim=-1)

    return rotate(q), rotate(k), v


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        return (
            _rotate(q, cos, sin, torch.empty(q.shape, dtype=q.dtype, device=q.device)),
            _rotate(k, cos, sin, torch.empty(k.shape, dtype=k.dtype, device=k.device)),
            v.view_as(v),
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        parts = empty_columns((dq, dk, dv))
        _rotate(dq, cos, sin, parts[0], backward=True)
        _rotate(dk, cos, sin, parts[1], backward=True)
        parts[2].copy_(dv)
        return *parts, None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, backward: bool = False) -> Tensor:
    """x rotated (or, for a gradient, rotated back) into ``out``."""
    if x.is_cuda:
        from tunesmith.kernels.fused import rope

        return rope.rotate(x, cos, sin, out, backward)
    rotated = cos.shape[-1]
    half = rotated // 2
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    torch.mul(x[..., :rotated], cos, out=out[..., :rotated])
    sin_first, sin_second = sin[..., :half], sin[..., half:]
    if backward:  # the transpose: what the second half took from the first goes back to the first
        sin_first, sin_second = -sin_second, -sin_first
    out[..., :half].addcmul_(x[..., half:rotated], sin_first, value=-1)
    out[..., half:rotated].addcmul_(x[..., :half], sin_second)
    out[..., rotated:].copy_(x[..., rotated:])
    return out
