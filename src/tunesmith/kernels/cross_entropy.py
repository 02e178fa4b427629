"""Head and cross-entropy in one: logits live only until their part of the gradient is known.

The gradient with respect to the hidden states is computed in the forward pass (the head is frozen, so it is all that is
needed). On a GPU a chunk of tokens has all its logits at a time, which one kernel turns into their gradient. Elsewhere a
block of the vocabulary follows the other, small enough for the processor's caches:

    z_v = cap(scale · h W_vᵀ),   x = log Σ_{v ≠ target} exp(z_v) − z_target
    loss = softplus(x),   dloss/dh = scale · sigmoid(x) · (E[slope_v W_v] − slope_target W_target)

with E over the softmax of all words but the target. Sums of ``exp(z − m)`` and of ``exp(z − m) slope W`` are kept under a
highest logit m that grows as blocks come in (Milakov and Gimelshein 2018, arXiv 1805.02867). As nothing of the size of the
target's own share is ever subtracted, what is left of a sure prediction's loss and gradient is exact to the last digits.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = 16 * 2**20
"""Logits in flight at a time on a GPU (64 MB in fp32)."""
BLOCK_ROWS, BLOCK_COLUMNS = 1024, 1024
"""Tokens and words of the vocabulary in one matrix product elsewhere (4 MB of logits in fp32)."""
HEADROOM = 8.0
"""How far a logit may be above m before sums are moved to a higher one: sums of exponentials stay far from where fp32 ends."""


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
    return F.cross_entropy(logits, targets, reduction="sum")


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float, scale: float) -> Tensor:
        total = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        grad = torch.empty_like(hidden) if hidden.requires_grad else None
        fused = hidden.is_cuda and hidden.dtype != torch.float64
        rows = _chunk_rows(hidden.shape[0], weight.shape[0]) if fused else BLOCK_ROWS
        part_loss = _fused_loss if fused else _blockwise_loss
        for start in range(0, hidden.shape[0], rows):
            part = slice(start, start + rows)
            total += part_loss(hidden[part], weight, targets[part], softcap, scale, None if grad is None else grad[part])
        if grad is not None:
            ctx.save_for_backward(grad.mul_(scale) if scale != 1.0 else grad)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grad * grad_total.to(grad.dtype), None, None, None, None


def _chunk_rows(tokens: int, vocabulary: int) -> int:
    chunks = math.ceil(tokens * vocabulary / CHUNK_ELEMENTS)
    return max(1, math.ceil(tokens / max(chunks, 1)))


def _fused_loss(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float, scale: float, grad: Tensor | None) -> Tensor:
    """The sum of a chunk's losses; the gradient with respect to ``scale · h`` into ``grad``."""
    from tunesmith.kernels.fused.cross_entropy import softmax_gradient

    logits = hidden @ weight.T
    loss = softmax_gradient(logits, targets, softcap, scale, grad is not None).sum()
    if grad is not None:
        torch.mm(logits, weight, out=grad)
    return loss


def _blockwise_loss(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float, scale: float, grad: Tensor | None) -> Tensor:
    """The same by blocks of the vocabulary."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    sums = _Sums(hidden.shape, wide, hidden.device)
    for start in range(0, weight.shape[0], BLOCK_COLUMNS):
        block = weight[start : start + BLOCK_COLUMNS]
        sums.add((hidden @ block.T).to(wide), block, targets - start, softcap, scale, grad is not None)
    x = sums.total.log().add_(sums.highest).sub_(sums.target)
    if grad is not None:
        slope = 1 - (sums.target / softcap).square_() if softcap else 1.0
        mean = sums.weighted.div_(sums.total.clamp_min(torch.finfo(wide).tiny))
        grad.copy_(mean.sub_(weight[targets].mul_(slope)).mul_(x.sigmoid()))
    return F.softplus(x).sum()


class _Sums:
    """What is known of ``[N]`` tokens' logits after some blocks, ``[N, 1]`` each: highest (m), target (its logit), total
    (``Σ exp(z − m)`` of all other words); weighted ``[N, H]``: ``Σ exp(z − m) slope W`` of those."""

    def __init__(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> None:
        self.weighted = torch.zeros(shape, dtype=dtype, device=device)
        self.total = self.weighted.new_zeros(shape[0], 1)
        self.target = self.weighted.new_full((shape[0], 1), torch.nan)  # of a target outside the vocabulary it stays so
        self.highest = self.weighted.new_full((shape[0], 1), -torch.inf)

    def add(self, logits: Tensor, block: Tensor, place: Tensor, softcap: float, scale: float, gradient: bool) -> None:
        """One more block of words ``[C, H]`` with its logits ``[N, C]``, which are overwritten. place: of each target in it."""
        if scale != 1.0:
            logits.mul_(scale)
        if softcap:
            logits.div_(softcap).tanh_().mul_(softcap)
        inside = ((place >= 0) & (place < block.shape[0])).nonzero()[:, 0]
        here = inside, place[inside]
        self.target[inside, 0] = logits[here]
        self._raise(logits.amax(1, keepdim=True))
        slope = 1 - (logits / softcap).square_() if softcap and gradient else None
        exponential = logits.sub_(self.highest).exp_()
        exponential[here] = 0
        total = exponential.sum(1, keepdim=True)
        self.total += total
        if gradient:
            self._add_product(exponential if slope is None else exponential.mul_(slope), total, block)

    def _raise(self, peak: Tensor) -> None:
        """Move m up to where the logits of a block are, if some are far above it."""
        if bool((peak - self.highest <= HEADROOM).all()):
            return
        higher = torch.maximum(self.highest, peak)
        shrink = (self.highest - higher).exp_()
        self.total *= shrink
        self.weighted *= shrink
        self.highest = higher

    def _add_product(self, factors: Tensor, total: Tensor, block: Tensor) -> None:
        """Add ``factors W``. total: what a token's factors do not exceed in sum, ``[N, 1]``. In half precision their shares of it
        are multiplied, which gives a mean of the words: a sum of them may be too large for fp16, a factor too small."""
        if block.dtype == self.weighted.dtype:
            self.weighted.addmm_(factors, block)
        else:
            shares = factors.div_(total.clamp_min(torch.finfo(total.dtype).tiny))
            self.weighted += (shares.to(block.dtype) @ block) * total
