"""RMSNorm with a hand-written backward: ``y = w · x / sqrt(mean(x²) + ε)``, the weight frozen.

Zhang and Sennrich 2019 (arXiv 1910.07467). Statistics are fp32 whatever the type of x. With ``n = x · rstd`` and
``g = dy · w``:  ``dx = rstd (g − n · mean(g · n))``. Autograd's own chain through pow, mean, rsqrt and mul takes
three times as many passes over memory.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """``[*, H]`` normalised over the last dimension and scaled by the frozen ``weight + offset`` ``[H]`` (Gemma stores its
    weights minus one)."""
    return _RMSNorm.apply(x, weight, eps, offset)


def rms_norm_plain(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """The plain twin of `rms_norm`."""
    weight = weight + offset if offset else weight
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps))).to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
        if x.is_cuda:
            from tunesmith.kernels.fused.rms_norm import rms_norm_forward

            flat = x.reshape(-1, x.shape[-1])
            y, rstd = rms_norm_forward(flat, weight, eps, offset)
            ctx.save_for_backward(flat, weight, rstd)
            ctx.offset = offset
            return y.view(x.shape)
        weight = weight + offset if offset else weight
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        rstd = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, rstd)
        return (wide * rstd).mul_(weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rstd = ctx.saved_tensors
        if x.is_cuda:
            from tunesmith.kernels.fused.rms_norm import rms_norm_backward

            dx = rms_norm_backward(grad.reshape(x.shape), x, weight, rstd, ctx.offset)
            return dx.view(grad.shape), None, None, None
        normed = x * rstd
        scaled = grad.to(rstd.dtype) * weight
        inner = torch.linalg.vecdot(scaled, normed).unsqueeze(-1).div_(x.shape[-1])
        dx = scaled.addcmul_(normed, inner, value=-1).mul_(rstd)
        return dx.to(x.dtype), None, None, None
