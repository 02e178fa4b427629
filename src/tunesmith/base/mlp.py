"""Gated MLPs with the lean activation inside: same layers, same parameters, another product of gate and up."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.kernels.columns import split_columns
from tunesmith.kernels.gated import KINDS, gated, gated_plain

SEPARATE, FUSED = {"gate_proj", "up_proj", "down_proj"}, {"gate_up_proj", "down_proj"}


MOST_ROUNDING = 0.1
"""The largest distance that may be put down to rounding."""


class LeanMLP(nn.Module):
    """``down(act(gate(x)) · up(x))`` over the very layers of a transformers MLP."""

    gate_proj: nn.Module
    up_proj: nn.Module
    gate_up_proj: nn.Module
    down_proj: nn.Module

    def __init__(self, mlp: nn.Module, kind: str) -> None:
        super().__init__()
        self.kind = kind
        for name, child in mlp.named_children():
            self.add_module(name, child)

    def forward(self, x: Tensor, product: Callable[[Tensor, Tensor, str], Tensor] = gated) -> Tensor:
        if hasattr(self, "gate_up_proj"):
            both = self.gate_up_proj(x)
            gate, up = split_columns(both, [both.shape[-1] // 2] * 2)
        else:
            gate, up = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(product(gate, up, self.kind))


def is_gated_mlp(module: Any) -> bool:
    """Whether the module has the layers of a gated MLP; what it computes is checked by `lean_mlp`."""
    names = {name for name, child in module.named_children()}
    return not isinstance(module, LeanMLP) and (names >= SEPARATE or names >= FUSED)


@torch.no_grad()
def lean_mlp(mlp: nn.Module, x: Tensor, expected: Tensor) -> LeanMLP | None:
    """Our module for this one if it gives ``expected`` for ``x``, else None."""
    made = [LeanMLP(mlp, kind) for kind in KINDS]
    nearest = min(made, key=lambda lean: distance(lean(x, gated_plain), expected))
    return nearest if close(nearest(x, gated_plain), expected) else None


def distance(got: Tensor, expected: Tensor) -> float:
    """Norm of the difference as a share of what is expected; infinite for another shape or values that are not finite."""
    if got.shape != expected.shape:
        return math.inf
    share = float(torch.linalg.vector_norm((got - expected).double()) / torch.linalg.vector_norm(expected.double()))
    return share if math.isfinite(share) else math.inf


def close(got: Tensor, expected: Tensor, rounding: float = 0.0) -> bool:
    """Whether two orders of the same arithmetic gave these; rounding: a distance known to come from that alone."""
    allowed = 1e-4 if expected.dtype in (torch.float32, torch.float64) else 1e-2
    return distance(got, expected) <= max(allowed, min(rounding, MOST_ROUNDING))
