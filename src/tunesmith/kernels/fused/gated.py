"""The gated activation of an MLP, ``act(gate) · up``, in one pass; its two gradients as columns of one matrix in another.

SwiGLU and its kin: Shazeer 2020 (arXiv 2002.05202). ``silu(g) = g σ(g)``; GELU's tanh form is ``g σ(2z)`` with
``z = sqrt(2/π) (g + 0.044715 g³)``, the tanh folded into the sigmoid; exact GELU is ``g Φ(g)``. Nothing but gate and up is kept
for backward: ``dgate = d · up · act'(gate)``, ``dup = d · act(gate)``.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tunesmith.kernels.fused.kernel import kernel
from tunesmith.kernels.gated import KINDS, gated_plain

COLUMNS = 1024
"""Columns of one row a program computes."""


def gated_forward(gate: Tensor, up: Tensor, kind: str) -> Tensor:
    """``act(gate) · up``, ``[T, F]``.

    Args:
        gate, up: ``[T, F]``, any stride between rows (columns of one wider matrix, usually).
        kind: "silu", "gelu_tanh" or "gelu".
    """
    assert kind in KINDS
    assert gate.stride(1) == up.stride(1) == 1
    rows, size = gate.shape
    out = torch.empty(rows, size, dtype=gate.dtype, device=gate.device)
    _forward[(rows, triton.cdiv(size, COLUMNS))](
        gate,
        up,
        out,
        size,
        gate.stride(0),
        up.stride(0),
        KIND=kind,
        COLUMNS=COLUMNS,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return out


def gated_backward(d: Tensor, gate: Tensor, up: Tensor, kind: str) -> Tensor:
    """``[T, 2F]``, dgate in the first F columns and dup in the last, from the gradient d ``[T, F]`` (any row stride)."""
    assert kind in KINDS
    assert d.stride(1) == gate.stride(1) == up.stride(1) == 1
    rows, size = gate.shape
    out = torch.empty(rows, 2 * size, dtype=gate.dtype, device=gate.device)
    _backward[(rows, triton.cdiv(size, COLUMNS))](
        d,
        gate,
        up,
        out,
        size,
        d.stride(0),
        gate.stride(0),
        up.stride(0),
        KIND=kind,
        COLUMNS=COLUMNS,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return out


def gated_forward_plain(gate: Tensor, up: Tensor, kind: str) -> Tensor:
    """The plain twin of `gated_forward`."""
    return gated_plain(gate.float(), up.float(), kind).to(gate.dtype)


def gated_backward_plain(d: Tensor, gate: Tensor, up: Tensor, kind: str) -> Tensor:
    """The plain twin of `gated_backward`: autograd."""
    wide_gate, wide_up = (part.detach().float().clone().requires_grad_() for part in (gate, up))
    with torch.enable_grad():
        y = gated_forward_plain(wide_gate, wide_up, kind)
    return torch.cat(torch.autograd.grad(y, (wide_gate, wide_up), d.float()), dim=1).to(gate.dtype)


@triton.jit
def _share(gate, KIND: tl.constexpr):
    """s in ``act(g) = g · s(g)``."""
    if KIND == "silu":
        share = 1.0 / (1.0 + tl.exp(-gate))
    elif KIND == "gelu_tanh":
        share = 1.0 / (1.0 + tl.exp(-1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)))
    else:
        share = 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))
    return share


@triton.jit
def _share_slope(gate, share, KIND: tl.constexpr):
    """``g · s'(g)``, so that ``act'(g) = s + g s'``."""
    if KIND == "silu":
        slope = gate * share * (1.0 - share)
    elif KIND == "gelu_tanh":
        slope = gate * share * (1.0 - share) * (1.5957691216057308 * (1.0 + 0.134145 * gate * gate))
    else:
        slope = gate * 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
    return slope


@kernel()
def _forward(gate, up, out, size, gate_stride, up_stride, KIND: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    here = column < size
    g = tl.load(gate + row * gate_stride + column, here, 0.0).to(tl.float32)
    u = tl.load(up + row * up_stride + column, here, 0.0).to(tl.float32)
    tl.store(out + row * size + column, (g * _share(g, KIND) * u).to(out.dtype.element_ty), here)


@kernel()
def _backward(d, gate, up, out, size, d_stride, gate_stride, up_stride, KIND: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    here = column < size
    grad = tl.load(d + row * d_stride + column, here, 0.0).to(tl.float32)
    g = tl.load(gate + row * gate_stride + column, here, 0.0).to(tl.float32)
    u = tl.load(up + row * up_stride + column, here, 0.0).to(tl.float32)
    share = _share(g, KIND)
    dgate = grad * u * (share + _share_slope(g, share, KIND))
    dup = grad * g * share
    out += row * (2 * size) + column
    tl.store(out, dgate.to(out.dtype.element_ty), here)
    tl.store(out + size, dup.to(out.dtype.element_ty), here)
