"""Head and cross-entropy in one: the logits of a chunk of tokens live only until their gradient is known.

The gradient with respect to the hidden states is computed in the forward pass (the head is frozen, so it is all that is
needed), chunk by chunk, which bounds memory by ``chunk × vocabulary`` whatever the batch.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = 16 * 2**20
"""Logits in flight at a time (64 MB in fp32)."""
CPU_COLUMNS = 2048
"""Words of the vocabulary in one matrix product on a CPU: a whole row of logits at once runs at two thirds of the speed."""


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, softcap: float = 0.0, logit_scale: float = 1.0
) -> Tensor:
    """Sum over tokens of ``-log softmax(cap(logit_scale · h Wᵀ))[target]``, a float32 (or wider) scalar.

    Args:
        hidden: ``[N, H]`` final hidden states of the tokens that have a target.
        weight: ``[V, H]`` frozen output head, of hidden's dtype.
        targets: ``[N]`` int64 token ids.
        softcap: c in ``c · tanh(logits / c)`` (Gemma 2), 0 for none.
        logit_scale: factor on the logits (Granite, Cohere).
    """
    return _LinearCrossEntropy.apply(hidden, weight, targets, softcap, logit_scale)


def linear_cross_entropy_plain(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, softcap: float = 0.0, logit_scale: float = 1.0
) -> Tensor:
    """The plain twin of `linear_cross_entropy`: all logits at once, ordinary autograd."""
    logits = (hidden @ weight.T).to(torch.promote_types(hidden.dtype, torch.float32)) * logit_scale
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")


def _logits(hidden: Tensor, weight: Tensor, scratch: Tensor) -> Tensor:
    """``h Wᵀ`` in the first rows of ``scratch``."""
    logits = scratch[: hidden.shape[0]]
    columns = CPU_COLUMNS if hidden.device.type == "cpu" else weight.shape[0]
    for start in range(0, weight.shape[0], columns):
        torch.mm(hidden, weight[start : start + columns].T, out=logits[:, start : start + columns])
    return logits


def _loss_and_slope(logits: Tensor, targets: Tensor, softcap: float, scale: float, gradient: bool) -> tuple[Tensor, Tensor | None]:
    """The sum of the losses, and the gradient with respect to ``scale · logits``, of logits' type; logits are overwritten."""
    if logits.is_cuda and logits.dtype != torch.float64:
        from tunesmith.kernels.fused.cross_entropy import softmax_gradient

        return softmax_gradient(logits, targets, softcap, scale, gradient).sum(), logits if gradient else None
    kind, logits = logits.dtype, logits.to(torch.promote_types(logits.dtype, torch.float32))
    if scale != 1.0:
        logits.mul_(scale)
    if softcap:
        logits.div_(softcap).tanh_().mul_(softcap)
    target = targets.unsqueeze(1)
    highest, where = logits.max(1, keepdim=True)
    target_logit = logits.gather(1, target)
    slope = 1 - (logits / softcap).square_() if softcap and gradient else None
    softmax = torch.softmax(logits, 1, out=logits)
    # log Z from the largest probability, which is never below 1/V: one pass less than logsumexp, and as exact
    total = (highest - softmax.gather(1, where).log() - target_logit).sum()
    if not gradient:
        return total, None
    dlogits = softmax.scatter_add_(1, target, -torch.ones_like(target_logit))
    return total, (dlogits if slope is None else dlogits.mul_(slope)).to(kind)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float, scale: float) -> Tensor:
        total = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        grad = torch.empty_like(hidden) if hidden.requires_grad else None
        chunks = math.ceil(hidden.shape[0] * weight.shape[0] / CHUNK_ELEMENTS)
        rows = max(1, math.ceil(hidden.shape[0] / max(chunks, 1)))
        scratch = hidden.new_empty(rows, weight.shape[0])
        for start in range(0, hidden.shape[0], rows):
            part = slice(start, start + rows)
            logits = _logits(hidden[part], weight, scratch)
            loss, slope = _loss_and_slope(logits, targets[part], softcap, scale, grad is not None)
            total += loss
            if grad is not None and slope is not None:
                torch.mm(slope, weight, out=grad[part])
        if grad is not None:
            ctx.save_for_backward(grad.mul_(scale) if scale != 1.0 else grad)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grad * grad_total.to(grad.dtype), None, None, None, None
