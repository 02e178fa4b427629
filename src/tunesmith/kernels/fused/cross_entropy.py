"""Softmax cross-entropy and its gradient, which takes the logits' place: two passes over a row, nothing else in memory.

With ``z = scale · logits`` (and ``z = c · tanh(z / c)`` under a softcap c):  ``loss = log Σ exp(z) − z[target]``,
gradient  ``(softmax(z) − onehot) · slope`` with ``slope = 1 − (z / c)²`` under a softcap. That is the gradient with respect
to ``scale · logits``: the caller multiplies by the scale where fewer numbers are, after the product with the head.

The first pass keeps a running maximum and a running sum of exponentials below it (Milakov and Gimelshein 2018,
arXiv 1805.02867), the second writes. A NaN among the logits is a NaN in the loss.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tunesmith.kernels.fused.kernel import kernel

IGNORE = -100
"""Target of a row that has none."""
COLUMNS = 4096
"""Logits of its row a program holds at a time."""


def softmax_gradient(logits: Tensor, targets: Tensor, softcap: float, scale: float, gradient: bool) -> Tensor:
    """Losses ``[N]`` fp32; with ``gradient``, the gradient of their sum lies in ``logits`` afterwards.

    Args:
        logits: ``[N, V]``, any stride between rows; overwritten only with ``gradient``.
        targets: ``[N]`` int64, -100 for no target: loss and gradient 0.
        softcap: c in ``c · tanh(z / c)``, 0 for none. scale: factor on the logits before that.
    """
    assert logits.dtype in (torch.float32, torch.bfloat16, torch.float16)
    assert logits.stride(1) == 1
    assert targets.dtype == torch.int64
    assert targets.shape == logits.shape[:1]
    assert targets.is_contiguous()
    losses = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    _softmax_gradient[(logits.shape[0],)](
        logits, targets, losses, logits.shape[1], logits.stride(0), float(softcap), float(scale),
        CAPPED=softcap != 0, SCALED=scale != 1, GRADIENT=gradient, COLUMNS=COLUMNS, num_warps=8, enable_fp_fusion=True,
    )  # fmt: skip
    return losses


def softmax_gradient_plain(logits: Tensor, targets: Tensor, softcap: float, scale: float) -> tuple[Tensor, Tensor]:
    """The plain twin of `softmax_gradient`, but for leaving logits as they are: losses, and the gradient by autograd."""
    wide = logits.detach().float().requires_grad_()
    with torch.enable_grad():
        z = wide * scale
        if softcap:
            z = softcap * torch.tanh(z / softcap)
        losses = torch.nn.functional.cross_entropy(z, targets, reduction="none", ignore_index=IGNORE)
        (gradient,) = torch.autograd.grad(losses.sum(), wide)
    return losses.detach(), (gradient / scale).to(logits.dtype)


@triton.jit
def _z(logit, softcap, scale, CAPPED: tl.constexpr, SCALED: tl.constexpr):
    """z of a logit, fp32."""
    z = logit.to(tl.float32)
    if SCALED:
        z = z * scale
    if CAPPED:
        small = tl.exp(-2.0 * tl.abs(z / softcap))  # at most 1, so that nothing overflows
        tanh = (1.0 - small) / (1.0 + small)
        z = softcap * tl.where(z < 0.0, -tanh, tanh)
    return z


# targets: a later chunk may begin at any of them, and must not compile anew for how it is aligned
@kernel(do_not_specialize=["targets"])
def _softmax_gradient(
    logits, targets, losses, size, stride, softcap, scale,
    CAPPED: tl.constexpr, SCALED: tl.constexpr, GRADIENT: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    target = tl.load(targets + row).to(tl.int32)
    trained = target != -100
    # Read before the row is overwritten. A target beyond the vocabulary makes the loss NaN, which stops the run.
    inside = (target >= 0) & (target < size)
    wanted = _z(tl.load(logits + target, inside, float("nan")), softcap, scale, CAPPED, SCALED)
    highest = -3.4e38  # finite, so that a row may begin with any number of -inf
    total = 0.0
    for start in range(0, size, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        z = _z(tl.load(logits + column, column < size, float("-inf")), softcap, scale, CAPPED, SCALED)
        z = tl.where(column < size, z, float("-inf"))
        higher = tl.maximum(highest, tl.max(z, axis=0))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(z - higher), axis=0)
        highest = higher
    tl.store(losses + row, tl.where(trained, tl.log(total) + (highest - wanted), 0.0))
    if GRADIENT:
        share = 1.0 / total
        for start in range(0, size, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            z = _z(tl.load(logits + column, column < size, float("-inf")), softcap, scale, CAPPED, SCALED)
            change = tl.exp(z - highest) * share
            change = tl.where(column == target, change - 1.0, change)
            if CAPPED:
                change = change * (1.0 - (z / softcap) * (z / softcap))
            tl.store(logits + column, tl.where(trained, change, 0.0).to(logits.dtype.element_ty), column < size)
