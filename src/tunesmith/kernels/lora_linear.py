"""The QLoRA linear: ``y = x Ŵᵀ + b + s (drop(x) Aᵀ) Bᵀ`` as one autograd function.

LoRA: Hu et al. 2021 (arXiv 2106.09685); QLoRA: Dettmers et al. 2023 (arXiv 2305.14314).

Linears that read the same input (q, k, v; gate, up) are computed together: their frozen weights stand stacked in one
matrix and their A matrices make one product. Three things make it lean. The frozen weight Ŵ is not saved by autograd,
the caller owns it. Backward brackets on the rank side, so nothing of size out×in is ever formed:

    t = s dy B          [T, r]
    dB = s dyᵀ (drop(x) Aᵀ)
    dA = tᵀ drop(x)
    dx = dy Ŵ + drop(t A)

And dropout stores no mask: on a CPU the positions it dropped, on a GPU nothing, for there it is drawn again from a
counter. Legend: T tokens, K in-features, N out-features of all members
together, n_i of one, r_i its rank, R the ranks' sum.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tunesmith.kernels.columns import neighbours
from tunesmith.kernels.rank_side import RankSide, rank_side


def lora_linear(
    x: Tensor,
    weight: Callable[[], Tensor],
    bias: Tensor | None,
    lora_A: Sequence[Tensor],
    lora_B: Sequence[Tensor],
    scaling: Sequence[float],
    dropout_p: float = 0.0,
    salt: int = 0,
) -> tuple[Tensor, ...]:
    """Outputs of all linears that read ``x``, one tensor ``[*, n_i]`` each.

    Args:
        x: ``[*, K]``, of the compute dtype.
        weight: gives the stacked frozen weights ``[N, K]`` in x's dtype; called again in backward, so that a weight
            dequantised on the fly need not live between the two.
        bias: stacked frozen biases ``[N]`` or None.
        lora_A: ``[r_i, K]`` each; lora_B: ``[n_i, r_i]`` each. May be wider than x's dtype (fp32 masters).
        scaling: s of each member, ``alpha / r`` or ``alpha / sqrt(r)``.
        dropout_p: the chance that an element of x is dropped on the LoRA path; the members share one draw.
        salt: tells this group's draw from that of others (used on a GPU, see `rank_side`).
    """
    flat = x.reshape(-1, x.shape[-1])
    scaling = tuple(s / (1 - dropout_p) for s in scaling)
    side = rank_side(flat, sum(a.shape[0] for a in lora_A), dropout_p, salt)
    outputs = _LoraLinear.apply(flat, weight, bias, side, scaling, len(lora_A), *lora_A, *lora_B)
    return tuple(y.view(*x.shape[:-1], y.shape[-1]) for y in outputs)


def lora_linear_plain(
    x: Tensor,
    weight: Callable[[], Tensor],
    bias: Tensor | None,
    lora_A: Sequence[Tensor],
    lora_B: Sequence[Tensor],
    scaling: Sequence[float],
    dropout_p: float = 0.0,
    salt: int = 0,
) -> tuple[Tensor, ...]:
    """The plain twin of `lora_linear`: ordinary autograd, same draw of dropout for the same random state."""
    base = F.linear(x, weight(), bias).split([B.shape[0] for B in lora_B], dim=-1)
    if dropout_p > 0:
        keep = rank_side(x.reshape(-1, x.shape[-1]), 1, dropout_p, salt).mask().view(x.shape)
        x = x * keep / (1 - dropout_p)
    return tuple(y + s * (x @ A.to(x.dtype).T @ B.to(x.dtype).T) for y, A, B, s in zip(base, lora_A, lora_B, scaling))


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Callable[[], Tensor],
        bias: Tensor | None,
        side: RankSide,
        scaling: tuple[float, ...],
        members: int,
        *factors: Tensor,
    ) -> tuple[Tensor, ...]:
        lora_A, lora_B = factors[:members], factors[members:]
        B = [b.to(x.dtype) for b in lora_B]
        kept, xA = side.project(x, _stacked(lora_A, x.dtype))
        W = weight()
        y = torch.addmm(bias, x, W.T) if bias is not None else x @ W.T
        outputs = y.split([b.shape[0] for b in B], dim=1)
        for out, part, b, s in zip(outputs, xA.split([a.shape[0] for a in lora_A], dim=1), B, scaling):
            out.addmm_(part, b.T, alpha=s)
        ctx.save_for_backward(kept, xA, *factors)
        ctx.weight, ctx.side, ctx.scaling, ctx.members = weight, side, scaling, members
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        kept, xA, *factors = ctx.saved_tensors
        lora_A, lora_B = factors[: ctx.members], factors[ctx.members :]
        ranks = [a.shape[0] for a in lora_A]
        t = torch.empty_like(xA)
        grads_B = []
        for dy, b, part, t_i, s in zip(grads, lora_B, xA.split(ranks, 1), t.split(ranks, 1), ctx.scaling):
            # Thin products run three times as fast on a CPU with the rank as rows, so B and dB are handled transposed.
            torch.mul(F.linear(dy, b.to(xA.dtype).T.contiguous()), s, out=t_i)
            grads_B.append((part.T @ dy).mul_(s).T.to(b.dtype, memory_format=torch.contiguous_format))
        grads_A = [g.to(a.dtype) for g, a in zip(ctx.side.gradient(t, kept).split(ranks), lora_A)]
        dx = None
        if ctx.needs_input_grad[0]:
            dx = ctx.side.add_projected(_frozen_gradient(ctx.weight(), grads), t, _stacked(lora_A, xA.dtype))
        return (dx, None, None, None, None, None, *grads_A, *grads_B)


def _stacked(lora_A: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """``[R, K]``"""
    return torch.cat([a.to(dtype) for a in lora_A]) if len(lora_A) > 1 else lora_A[0].to(dtype)


def _frozen_gradient(W: Tensor, grads: Sequence[Tensor]) -> Tensor:
    """``dy Ŵ``, ``[T, K]``."""
    joined = neighbours(grads)
    if joined is not None:
        return joined @ W
    start = grads[0].shape[1]
    dx = grads[0] @ W[:start]
    for dy in grads[1:]:
        dx.addmm_(dy, W[start : start + dy.shape[1]])
        start += dy.shape[1]
    return dx
