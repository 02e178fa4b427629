"""The gated activation of an MLP, ``act(gate) · up``, with a hand-written backward.

SwiGLU and its kin: Shazeer 2020 (arXiv 2002.05202). Only gate and up are kept for backward, not ``act(gate)``; and the
two gradients leave as columns of one matrix, so that the stacked gate and up linear reads them in one product.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

KINDS = ("silu", "gelu_tanh", "gelu")
"""Activations: SiLU (Llama, Qwen, Phi), GELU in its tanh form (Gemma) and GELU."""


def gated(gate: Tensor, up: Tensor, kind: str) -> Tensor:
    """``act(gate) · up``, ``[*, F]``; kind is one of `KINDS`."""
    flat = _Gated.apply(gate.reshape(-1, gate.shape[-1]), up.reshape(-1, up.shape[-1]), kind)
    return flat.view(gate.shape)


def gated_plain(gate: Tensor, up: Tensor, kind: str) -> Tensor:
    """The plain twin of `gated`."""
    return _activate(gate, kind) * up


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, kind: str) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.kind = kind
        if gate.is_cuda:
            from tunesmith.kernels.fused import gated as fused

            return fused.gated_forward(gate, up, kind)
        return _activate(gate, kind).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        width = gate.shape[1]
        if grad.is_cuda:
            from tunesmith.kernels.fused import gated as fused

            joined = fused.gated_backward(grad, gate, up, ctx.kind)
            return joined[:, :width], joined[:, width:], None
        joined = torch.empty(grad.shape[0], 2 * width, dtype=grad.dtype)
        _slope(grad * up, gate, ctx.kind, joined[:, :width])
        torch.mul(_activate(gate, ctx.kind), grad, out=joined[:, width:])
        return joined[:, :width], joined[:, width:], None


def _activate(gate: Tensor, kind: str) -> Tensor:
    if kind == "silu":
        return F.silu(gate)
    return F.gelu(gate, approximate="tanh" if kind == "gelu_tanh" else "none")


def _slope(grad: Tensor, gate: Tensor, kind: str, out: Tensor) -> None:
    """``grad · act'(gate)`` into ``out``."""
    if kind == "silu":
        torch.ops.aten.silu_backward.grad_input(grad, gate, grad_input=out)
        return
    form = "tanh" if kind == "gelu_tanh" else "none"
    torch.ops.aten.gelu_backward.grad_input(grad, gate, approximate=form, grad_input=out)
