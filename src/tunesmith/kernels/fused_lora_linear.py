"""`lora_linear` on a GPU: the thin products of all members ride on the thick ones.

    y       = [x | xA] [Ŵ | B]ᵀ         [T, N]
    [dx | t] = dy [Ŵ | B]               [T, K + R]      before ``s drop(t A)`` is added to dx

xA is written behind a copy of x, and B stands behind Ŵ (a member's factor beside its own rows, zeros elsewhere; see
`factors.Behind`). Sixteen more columns cost a product 2 % at most, where adding xA Bᵀ to y afterwards reads and writes all of y,
and t would read all of dy. And what a young adapter adds, which in bf16 is less than half of y's last digit, is part of the sum
before it is rounded: added to a rounded y it would vanish (docs/decisions/0019).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tunesmith.kernels.at_once import at_once
from tunesmith.kernels.columns import add_products
from tunesmith.kernels.counter_side import CounterSide
from tunesmith.kernels.factors import Weight, gradient_sum, room, stacked


class FusedLoraLinear(torch.autograd.Function):
    """Arguments as of `lora_linear`, x flat ``[T, K]``, ``1 / (1 - p)`` in the scaling. What lora_B is, the weight says; theirs are
    the shapes and the gradients. Those of a factor that has a `gradient_sum` are added to it and not handed to autograd."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Weight,
        bias: Tensor | None,
        side: CounterSide,
        scaling: float,
        members: int,
        *factors: Tensor,
    ) -> tuple[Tensor, ...]:
        lora_A, lora_B = factors[:members], factors[members:]
        A = stacked(lora_A, x.dtype)
        wide, xA = side.project(x, A, scaling)
        widths = [b.shape[0] for b in lora_B]
        y = x.new_empty(x.shape[0], sum(widths))
        start = 0
        for W in weight():
            torch.mm(wide, W.T, out=y[:, start : start + W.shape[0]])
            start += W.shape[0]
        if bias is not None:
            y.add_(bias)
        ctx.save_for_backward(x, xA, *factors)
        ctx.weight, ctx.side, ctx.scaling, ctx.members = weight, side, scaling, members
        # autograd may hand back other objects for the factors: what hangs on them is kept here
        ctx.A, ctx.sums = A, [gradient_sum(factor) for factor in factors]
        return y.split(widths, dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, xA, *factors = ctx.saved_tensors
        lora_A, lora_B = factors[: ctx.members], factors[ctx.members :]
        ranks, size = [a.shape[0] for a in lora_A], x.shape[1]
        first = 0 if ctx.needs_input_grad[0] else size  # of the columns that are wanted
        wide = x.new_empty(x.shape[0], size + room(sum(ranks)) - first)
        add_products(wide, grads, (W[:, first:] for W in ctx.weight()), beta=0)
        dx = wide[:, :size] if first == 0 else None
        t = wide[:, size - first : size - first + sum(ranks)]
        sums_A, sums_B = ctx.sums[: ctx.members], ctx.sums[ctx.members :]
        to_A = sums_A[0] if len(sums_A) == 1 else None  # of several, the gradients are made as one matrix
        grad_A = x.new_zeros(sum(ranks), size, dtype=lora_A[0].dtype) if to_A is None else to_A
        grads_B = [torch.zeros_like(b) if to_B is None else to_B for b, to_B in zip(lora_B, sums_B)]
        at_once(
            x.device,
            lambda: [ctx.side.output_gradient(*each) for each in zip(grads, xA.split(ranks, 1), grads_B)],
            lambda: ctx.side.input_gradient(t, x, ctx.scaling, grad_A),
            lambda: None if dx is None else ctx.side.spread(t, ctx.A, ctx.scaling, dx),
        )
        new_A = grad_A.split(ranks) if to_A is None else [None]
        new_B = [grad if to_B is None else None for grad, to_B in zip(grads_B, sums_B)]
        return (dx, None, None, None, None, None, *new_A, *new_B)
