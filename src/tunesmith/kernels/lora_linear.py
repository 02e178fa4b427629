"""The QLoRA linear: ``y = x Ŵᵀ + b + s (drop(x) Aᵀ) Bᵀ`` as one autograd function.

LoRA: Hu et al. 2021 (arXiv 2106.09685); QLoRA: Dettmers et al. 2023 (arXiv 2305.14314).

Linears that read the same input (q, k, v; gate, up) are computed together: their frozen weights stand stacked in one
matrix and their A matrices make one product. Three things make it lean. The frozen weight Ŵ is not saved by autograd,
the caller owns it. Backward brackets on the rank side, so nothing of size out×in is ever formed:

    t = s dy B          [T, r]
    dB = dyᵀ (s drop(x) Aᵀ)
    dA = tᵀ drop(x)
    dx = dy Ŵ + drop(t A)

And dropout stores no mask (see `rank_side`, `counter_side`). On a GPU the thin product is part of the thick one (see
`fused_lora_linear`). Legend: T tokens, K in-features, N out-features of all members together, n_i of one, r_i its rank, R the
ranks' sum.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tunesmith.kernels.columns import add_products
from tunesmith.kernels.counter_side import CounterSide
from tunesmith.kernels.factors import Weight, in_type, stacked
from tunesmith.kernels.rank_side import RankSide


def lora_linear(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None,
    lora_A: Sequence[Tensor],
    lora_B: Sequence[Tensor],
    scaling: float,
    dropout_p: float = 0.0,
    salt: int = 0,
) -> tuple[Tensor, ...]:
    """Outputs of all linears that read ``x``, one tensor ``[*, n_i]`` each.

    Args:
        x: ``[*, K]``, of the compute dtype.
        weight: gives the stacked frozen weights ``[N, K]`` in x's dtype, as blocks of rows in order; called again in
            backward, so that a weight dequantised on the fly need not live between the two, nor whole at any time. On a GPU
            each row has `factors.room` columns more, in which lora_B stands in that type (see `factors.Behind`).
        bias: stacked frozen biases ``[N]`` or None.
        lora_A: ``[r_i, K]`` each; lora_B: ``[n_i, r_i]`` each. May be wider than x's dtype (fp32 masters).
        scaling: s, ``alpha / r`` or ``alpha / sqrt(r)``, the members' own.
        dropout_p: the chance that an element of x is dropped on the LoRA path; the members share one draw.
        salt: tells this group's draw from that of others (used on a GPU, see `counter_side`).
    """
    flat, scale, members = x.reshape(-1, x.shape[-1]), scaling / (1 - dropout_p), len(lora_A)
    if x.is_cuda:
        from tunesmith.kernels.fused_lora_linear import FusedLoraLinear

        counter = CounterSide.of(flat.shape, sum(a.shape[0] for a in lora_A), dropout_p, salt, x.device)
        outputs = FusedLoraLinear.apply(flat, weight, bias, counter, scale, members, *lora_A, *lora_B)
    else:
        outputs = _LoraLinear.apply(flat, weight, bias, RankSide.of(flat, dropout_p), scale, members, *lora_A, *lora_B)
    return tuple(y.view(*x.shape[:-1], y.shape[-1]) for y in outputs)


def lora_linear_plain(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None,
    lora_A: Sequence[Tensor],
    lora_B: Sequence[Tensor],
    scaling: float,
    dropout_p: float = 0.0,
    salt: int = 0,
) -> tuple[Tensor, ...]:
    """The plain twin of `lora_linear`: ordinary autograd, same draw of dropout for the same random state."""
    base = F.linear(x, torch.cat([W[:, : x.shape[-1]] for W in weight()]), bias).split([B.shape[0] for B in lora_B], dim=-1)
    if dropout_p > 0:
        flat = x.reshape(-1, x.shape[-1])
        side = CounterSide.of(flat.shape, 1, dropout_p, salt, x.device) if x.is_cuda else RankSide.of(flat, dropout_p)
        keep = side.mask().view(x.shape)
        x = x * keep / (1 - dropout_p)
    return tuple(y + scaling * (x @ A.to(x.dtype).T @ B.to(x.dtype).T) for y, A, B in zip(base, lora_A, lora_B))


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Weight,
        bias: Tensor | None,
        side: RankSide,
        scaling: float,
        members: int,
        *factors: Tensor,
    ) -> tuple[Tensor, ...]:
        lora_A, lora_B = factors[:members], factors[members:]
        A, B = stacked(lora_A, x.dtype), [in_type(b, x.dtype) for b in lora_B]
        kept, xA = side.project(x, A, scaling)
        y = x.new_empty(x.shape[0], sum(b.shape[0] for b in B))
        outputs = y.split([b.shape[0] for b in B], dim=1)
        for part, xA_i, b in zip(outputs, xA.split([a.shape[0] for a in lora_A], dim=1), B):
            torch.mm(xA_i, b.T, out=part)
        _add_product(y, x, weight, bias)  # one pass over y instead of two, and both terms are rounded once, as one sum
        ctx.save_for_backward(kept, xA, *factors)
        ctx.weight, ctx.side, ctx.scaling, ctx.members = weight, side, scaling, members
        # autograd may hand back other objects for the factors: what hangs on them is kept here
        ctx.A, ctx.B = A, B
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        kept, xA, *factors = ctx.saved_tensors
        lora_A, lora_B = factors[: ctx.members], factors[ctx.members :]
        ranks = [a.shape[0] for a in lora_A]
        t = torch.empty_like(xA)
        grads_B = []
        for dy, b, full, part, t_i in zip(grads, ctx.B, lora_B, xA.split(ranks, 1), t.split(ranks, 1)):
            grads_B.append(ctx.side.output_gradients(dy, b, part, ctx.scaling, t_i, full.dtype))
        grad_A, dx = ctx.side.input_gradients(t, kept, ctx.A, ctx.needs_input_grad[0])
        grads_A = [g.to(a.dtype) for g, a in zip(grad_A.split(ranks), lora_A)]
        if dx is not None:
            add_products(dx, grads, ctx.weight())
        return (dx, None, None, None, None, None, *grads_A, *grads_B)


def _add_product(y: Tensor, x: Tensor, weight: Weight, bias: Tensor | None) -> None:
    """``y + x Ŵᵀ + b`` in place, ``[T, N]``."""
    start = 0
    for W in weight():
        y[:, start : start + W.shape[0]].addmm_(x, W.T)
        start += W.shape[0]
    if bias is not None:
        y.add_(bias)
