"""The rank side of a LoRA linear with dropout inside: the thin products, and one mask behind them.

    xA = s drop(x) Aᵀ        [T, R]
    y  = x Ŵᵀ + xA Bᵀ        [T, n]     of one member, the last term
    t  = s dy B              [T, r]     of one member
    dB = dyᵀ xA              [N, r]     of one member
    dA = tᵀ drop(x)          [R, K]
    dx = dy Ŵ + drop(t A)    [T, K]     the last term is this module's

The factor 1/(1-p) is part of s. On a CPU the dropped positions are drawn once and the copy of x that misses them is kept
for backward. On a GPU the mask is a function of a counter, drawn again in each product (see `fused.dropout`), so that x
itself is kept and a captured step draws a new mask whenever it is replayed with another seed.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.kernels.dropout import dropped_positions, mask_of, step_seed

MAX_FUSED_RANK = 128


class RankSide(ABC):
    """One group's draw of dropout in one forward pass."""

    @abstractmethod
    def project(self, x: Tensor, A: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """What `gradient_A` needs of x ``[T, K]``, and ``s drop(x) Aᵀ`` ``[T, R]``."""

    @abstractmethod
    def add_outputs(self, parts: Sequence[tuple[Tensor, Tensor, Tensor]], add_frozen: Callable[[int], None]) -> None:
        """``x Ŵᵀ + xA Bᵀ`` of every member, rounded so that on average nothing of the second term is lost.

        Args:
            parts: of each member the columns of y ``[T, n]`` to fill, xA ``[T, r]`` and B ``[n, r]``.
            add_frozen: makes β y + x Ŵᵀ (+ the bias) of y, from β (0 or 1).
        """

    @abstractmethod
    def output_gradients(self, dy: Tensor, B: Tensor, xA: Tensor, scale: float, t: Tensor, dtype: torch.dtype) -> Tensor:
        """``dB = dyᵀ xA``, ``[n, r]`` of this type, and ``s dy B`` into t ``[T, r]``; from dy ``[T, n]`` and B ``[n, r]``."""

    @abstractmethod
    def input_gradients(self, t: Tensor, kept: Tensor, A: Tensor, needed: bool) -> tuple[Tensor, Tensor | None]:
        """``dA = tᵀ drop(x)``, ``[R, K]``, and ``drop(t A)``, ``[T, K]``, which may be None where it is not needed."""

    @abstractmethod
    def mask(self) -> Tensor:
        """Which elements are kept, bool ``[T, K]``."""


def rank_side(x: Tensor, rank: int, p: float, salt: int) -> RankSide:
    """The rank side for inputs like x ``[T, K]``: the draw is made here."""
    if not x.is_cuda:
        return _Positions(x.shape, dropped_positions(x.numel(), p, x.device) if p > 0 else None)
    return (_FusedCounter if rank <= MAX_FUSED_RANK else _Counter)(x.shape, p, step_seed(x.device), salt)


class _Positions(RankSide):
    """Dropped positions, flat and ascending, or None. Thin products run three times as fast on a CPU with the rank as rows,
    so B and its gradient are handled transposed."""

    def __init__(self, shape: torch.Size, dropped: Tensor | None) -> None:
        self.shape, self.dropped = shape, dropped

    def project(self, x: Tensor, A: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        kept = x if self.dropped is None else x.reshape(-1).index_fill(0, self.dropped, 0).view_as(x)
        return kept, (kept @ A.T).mul_(scale)

    def add_outputs(self, parts: Sequence[tuple[Tensor, Tensor, Tensor]], add_frozen: Callable[[int], None]) -> None:
        for y, xA, B in parts:
            torch.mm(xA, B.T, out=y)
        add_frozen(1)  # one pass over y instead of two, and both terms are rounded once, as one sum

    def output_gradients(self, dy: Tensor, B: Tensor, xA: Tensor, scale: float, t: Tensor, dtype: torch.dtype) -> Tensor:
        torch.mul(F.linear(dy, B.T.contiguous()), scale, out=t)
        return (xA.T @ dy).T.to(dtype, memory_format=torch.contiguous_format)

    def input_gradients(self, t: Tensor, kept: Tensor, A: Tensor, needed: bool) -> tuple[Tensor, Tensor | None]:
        grad_A = t.T @ kept
        if not needed:
            return grad_A, None
        change = t @ A
        if self.dropped is not None:
            change.view(-1).index_fill_(0, self.dropped, 0)
        return grad_A, change

    def mask(self) -> Tensor:
        empty = torch.empty(0, dtype=torch.int64)
        return mask_of(self.dropped if self.dropped is not None else empty, self.shape)


class _Counter(RankSide):
    """A mask that is a function of (seed, salt, position); dropped copies of x live for one product."""

    def __init__(self, shape: torch.Size, p: float, seed: Tensor, salt: int) -> None:
        self.shape, self.p, self.seed, self.salt = shape, p, seed, salt
        self.training = torch.is_grad_enabled()

    def project(self, x: Tensor, A: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        return x, (self._drop(x) @ A.T).mul_(scale)

    def add_outputs(self, parts: Sequence[tuple[Tensor, Tensor, Tensor]], add_frozen: Callable[[int], None]) -> None:
        from tunesmith.kernels.fused import output_side

        add_frozen(0)
        seed = self.seed if self.training else None
        for number, (y, xA, B) in enumerate(parts):
            for start in range(0, B.shape[1], MAX_FUSED_RANK):
                some, draw = slice(start, start + MAX_FUSED_RANK), self.salt + 7919 * number + start
                output_side.add_expanded(xA[:, some], B[:, some].contiguous(), y, seed, draw)

    def output_gradients(self, dy: Tensor, B: Tensor, xA: Tensor, scale: float, t: Tensor, dtype: torch.dtype) -> Tensor:
        torch.addmm(t, dy, B, beta=0, alpha=scale, out=t)
        return dy.T @ xA if dy.dtype == dtype else torch.mm(dy.T, xA, out_dtype=dtype)

    def input_gradients(self, t: Tensor, kept: Tensor, A: Tensor, needed: bool) -> tuple[Tensor, Tensor | None]:
        return t.T @ self._drop(kept), self._drop(t @ A) if needed else None

    def mask(self) -> Tensor:
        return self._drop(torch.ones(self.shape, device=self.seed.device)) != 0

    def _drop(self, x: Tensor) -> Tensor:
        from tunesmith.kernels.fused import dropout

        return dropout.drop(x, self.p, self.seed, self.salt) if self.p else x


class _FusedCounter(_Counter):
    """The same mask, inside the products."""

    def project(self, x: Tensor, A: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        from tunesmith.kernels.fused import input_side

        return x, input_side.project(x, A, scale, self.p, self.seed, self.salt)

    def output_gradients(self, dy: Tensor, B: Tensor, xA: Tensor, scale: float, t: Tensor, dtype: torch.dtype) -> Tensor:
        from tunesmith.kernels.fused import output_side

        if dy.stride(1) != 1:
            return super().output_gradients(dy, B, xA, scale, t, dtype)
        return output_side.output_gradients(dy, B, xA, scale, t, dtype)

    def input_gradients(self, t: Tensor, kept: Tensor, A: Tensor, needed: bool) -> tuple[Tensor, Tensor | None]:
        from tunesmith.kernels.fused import input_side

        grad_A, change = input_side.input_gradients(t, kept, A, self.p, self.seed, self.salt)
        return grad_A, change if needed else None
