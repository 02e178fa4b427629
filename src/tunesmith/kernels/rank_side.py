"""The rank side of a LoRA linear on a CPU, dropout inside: the thin products, and one draw of dropped positions behind them.

    xA = s drop(x) Aᵀ        [T, R]
    y  = x Ŵᵀ + xA Bᵀ        [T, n]     of one member
    t  = s dy B              [T, r]     of one member
    dB = dyᵀ xA              [n, r]     of one member
    dA = tᵀ drop(x)          [R, K]
    dx = dy Ŵ + drop(t A)    [T, K]     the last term is this module's

The factor 1/(1-p) is part of s. The copy of x that misses the dropped positions is kept for backward.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.kernels.dropout import dropped_positions, mask_of


@dataclass(frozen=True)
class RankSide:
    """One group's draw of dropout in one forward pass: dropped positions of x, flat and ascending, or None. Thin products run
    three times as fast on a CPU with the rank as rows, so B and its gradient are handled transposed."""

    shape: torch.Size
    dropped: Tensor | None

    @staticmethod
    def of(x: Tensor, p: float) -> "RankSide":
        """For inputs like x ``[T, K]``: the draw is made here."""
        return RankSide(x.shape, dropped_positions(x.numel(), p, x.device) if p > 0 else None)

    def project(self, x: Tensor, A: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """What `input_gradients` needs of x ``[T, K]``, and ``s drop(x) Aᵀ`` ``[T, R]``."""
        kept = x if self.dropped is None else x.reshape(-1).index_fill(0, self.dropped, 0).view_as(x)
        return kept, (kept @ A.T).mul_(scale)

    def output_gradients(self, dy: Tensor, B: Tensor, xA: Tensor, scale: float, t: Tensor, dtype: torch.dtype) -> Tensor:
        """``dB = dyᵀ xA``, ``[n, r]`` of this type, and ``s dy B`` into t ``[T, r]``; from dy ``[T, n]`` and B ``[n, r]``."""
        torch.mul(F.linear(dy, B.T.contiguous()), scale, out=t)
        return (xA.T @ dy).T.to(dtype, memory_format=torch.contiguous_format)

    def input_gradients(self, t: Tensor, kept: Tensor, A: Tensor, needed: bool) -> tuple[Tensor, Tensor | None]:
        """``dA = tᵀ drop(x)``, ``[R, K]``, and ``drop(t A)``, ``[T, K]``, or None where it is not needed."""
        grad_A = t.T @ kept
        if not needed:
            return grad_A, None
        change = t @ A
        if self.dropped is not None:
            change.view(-1).index_fill_(0, self.dropped, 0)
        return grad_A, change

    def mask(self) -> Tensor:
        """Which elements are kept, bool ``[T, K]``."""
        empty = torch.empty(0, dtype=torch.int64)
        return mask_of(self.dropped if self.dropped is not None else empty, self.shape)
