"""RMSNorm with a hand-written backward: ``y = w · x / sqrt(mean(x²) + ε)``, the weight frozen.

Zhang and Sennrich 2019 (arXiv 1910.07467). Statistics are fp32 whatever the type of x. With ``n = x · rstd`` and
``g = dy · w``:  ``dx = rstd (g − n · mean(g · n))``. Autograd's own chain through pow, mean, rsqrt and mul takes
three times as many passes over memory. Where the residual stream goes past a norm, its addition is part of it both ways.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """``[*, H]`` normalised over the last dimension and scaled by the frozen ``weight + offset`` ``[H]`` (Gemma stores its
    weights minus one)."""
    return _RMSNorm.apply(x, None, weight, eps, offset)[1]


def residual_rms_norm(x: Tensor, added: Tensor | None, weight: Tensor, eps: float, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """``x + added`` and its `rms_norm`, ``[*, H]`` each; x itself where nothing is added. The first is the residual stream
    to go on with: the gradients of both then meet inside the norm's backward."""
    return _RMSNorm.apply(x, added, weight, eps, offset)


def rms_norm_plain(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """The plain twin of `rms_norm`."""
    weight = weight + offset if offset else weight
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps))).to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, added: Tensor | None, weight: Tensor, eps: float, offset: float) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.offset, ctx.adds = offset, added is not None
        if x.is_cuda:
            from tunesmith.kernels.fused.rms_norm import rms_norm_forward

            flat = x.reshape(-1, x.shape[-1])
            y, rstd, total = rms_norm_forward(flat, weight, eps, offset, None if added is None else added.reshape(flat.shape))
            ctx.save_for_backward(total, weight, rstd)
            return x if added is None else total.view(x.shape), y.view(x.shape)
        total = x if added is None else x + added
        weight = weight + offset if offset else weight
        wide = total.to(torch.promote_types(x.dtype, torch.float32))
        rstd = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(total, weight, rstd)
        return total, (wide * rstd).mul_(weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, beside: Tensor | None, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        dx = beside if grad is None else _input_gradient(ctx, beside, grad)
        return dx, dx if ctx.adds else None, None, None, None


def _input_gradient(ctx: Any, beside: Tensor | None, grad: Tensor) -> Tensor:
    """Of what was normalised, from the gradients of the norm and, if there is one, of the stream beside it."""
    x, weight, rstd = ctx.saved_tensors
    if x.is_cuda:
        from tunesmith.kernels.fused.rms_norm import rms_norm_backward

        other = None if beside is None else beside.reshape(x.shape)
        return rms_norm_backward(grad.reshape(x.shape), x, weight, rstd, ctx.offset, other).view(grad.shape)
    normed = x * rstd
    scaled = grad.to(rstd.dtype) * weight
    inner = torch.linalg.vecdot(scaled, normed).unsqueeze(-1).div_(x.shape[-1])
    dx = scaled.addcmul_(normed, inner, value=-1).mul_(rstd)
    if beside is not None:
        dx.add_(beside)
    return dx.to(x.dtype)
