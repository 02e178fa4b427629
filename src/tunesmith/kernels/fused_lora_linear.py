"""`lora_linear` on a GPU: the thin products of all members ride on the thick ones.

    y       = [x | xA] [Ŵ | B]ᵀ         [T, N]
    [dx | t] = dy [Ŵ | B]               [T, K + R]      before ``s drop(t A)`` is added to dx

xA is written behind a copy of x and B behind Ŵ (a member's factor beside its own rows, zeros elsewhere). Sixteen more columns
cost a product 2 % at most, where adding xA Bᵀ to y afterwards reads and writes all of y, and t would read all of dy. And what
a young adapter adds, which in bf16 is less than half of y's last digit, is part of the sum before it is rounded: added to a
rounded y it would vanish (docs/decisions/0019).
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tunesmith.kernels.columns import add_products, meeting
from tunesmith.kernels.counter_side import CounterSide
from tunesmith.kernels.factors import Weight, in_type, room, stacked


class FusedLoraLinear(torch.autograd.Function):
    """Arguments as of `lora_linear`, x flat ``[T, K]``, ``1 / (1 - p)`` in the scaling."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Weight,
        bias: Tensor | None,
        lasting: bool,
        side: CounterSide,
        scaling: float,
        members: int,
        *factors: Tensor,
    ) -> tuple[Tensor, ...]:
        lora_A, lora_B = factors[:members], factors[members:]
        A, B = stacked(lora_A, x.dtype), [in_type(b, x.dtype) for b in lora_B]
        wide, xA = side.project(x, A, scaling)
        widths = [b.shape[0] for b in B]
        y = x.new_empty(x.shape[0], sum(widths))
        start = 0
        for W in _with_factors(weight(), B, x.shape[1], lasting):
            torch.mm(wide, W.T, out=y[:, start : start + W.shape[0]])
            start += W.shape[0]
        if bias is not None:
            y.add_(bias)
        ctx.save_for_backward(x, xA, *factors)
        ctx.weight, ctx.lasting, ctx.side, ctx.scaling, ctx.members = weight, lasting, side, scaling, members
        # autograd may hand back other objects for the factors: what hangs on them is kept here
        ctx.A, ctx.B = A, B
        return y.split(widths, dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, xA, *factors = ctx.saved_tensors
        lora_A, lora_B = factors[: ctx.members], factors[ctx.members :]
        ranks, size = [a.shape[0] for a in lora_A], x.shape[1]
        blocks = ctx.weight() if ctx.lasting else _with_factors(ctx.weight(), ctx.B, size, False)
        first = 0 if ctx.needs_input_grad[0] else size  # of the columns that are wanted
        wide = x.new_empty(x.shape[0], size + room(sum(ranks)) - first)
        add_products(wide, grads, (W[:, first:] for W in blocks), beta=0)
        dx = wide[:, :size] if first == 0 else None
        t = wide[:, size - first : size - first + sum(ranks)]
        grad_A = ctx.side.input_gradients(t, x, ctx.A, ctx.scaling, dx)
        grads_A = [g.to(a.dtype) for g, a in zip(grad_A.split(ranks), lora_A)]
        grads_B = [ctx.side.output_gradient(dy, part, b.dtype) for dy, part, b in zip(grads, xA.split(ranks, 1), lora_B)]
        return (dx, None, None, None, None, None, None, *grads_A, *grads_B)


def _with_factors(weight: Iterable[Tensor], lora_B: Sequence[Tensor], size: int, lasting: bool) -> Iterator[Tensor]:
    """Blocks of rows ``[n, K + room]`` with the factors of their members behind column K. lasting: whether zeros are there, and
    maybe the factors (`training.flat` keeps them there)."""
    sizes, ranks = [b.shape[0] for b in lora_B], [b.shape[1] for b in lora_B]
    columns = list(itertools.accumulate(ranks, initial=size))
    first = 0
    for W in weight:
        last = first + W.shape[0]
        if not lasting and (len(ranks) > 1 or columns[1] < W.shape[1]):
            W[:, size:].zero_()
        for number, part, rows in meeting(sizes, first, last):
            place, b = W[rows, columns[number] : columns[number + 1]], lora_B[number][part]
            if place.data_ptr() != b.data_ptr():
                place.copy_(b)
        yield W
        first = last
