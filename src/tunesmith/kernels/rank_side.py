"""The rank side of a LoRA linear with dropout inside: three products that see ``drop(x)``, and one mask behind them.

    xA = drop(x) Aᵀ          [T, R]
    dA = tᵀ drop(x)          [R, K]
    dx += drop(t A)          [T, K]

The factor 1/(1-p) is the caller's. On a CPU the dropped positions are drawn once and the copy of x that misses them is
kept for backward. On a GPU the mask is a function of a counter, drawn again in each product (see `fused.dropout`), so that
x itself is kept and a captured step draws a new mask whenever it is replayed with another seed.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from tunesmith.kernels.dropout import dropped_positions, mask_of, step_seed

MAX_FUSED_RANK = 128


class RankSide(ABC):
    """One group's draw of dropout in one forward pass."""

    @abstractmethod
    def project(self, x: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
        """What `gradient` needs of x ``[T, K]``, and ``drop(x) Aᵀ`` ``[T, R]``."""

    @abstractmethod
    def gradient(self, t: Tensor, kept: Tensor) -> Tensor:
        """``tᵀ drop(x)``, ``[R, K]``."""

    @abstractmethod
    def add_projected(self, dx: Tensor, t: Tensor, A: Tensor) -> Tensor:
        """``dx + drop(t A)``, in place."""

    @abstractmethod
    def mask(self) -> Tensor:
        """Which elements are kept, bool ``[T, K]``."""


def rank_side(x: Tensor, rank: int, p: float, salt: int) -> RankSide:
    """The rank side for inputs like x ``[T, K]``: the draw is made here."""
    if not x.is_cuda:
        dropped = dropped_positions(x.numel(), p, x.device) if p > 0 else None
        return _Positions(x.shape, dropped)
    seed = step_seed(x.device)
    return (_FusedCounter if rank <= MAX_FUSED_RANK else _Counter)(x.shape, p, seed, salt)


class _Positions(RankSide):
    """Dropped positions, flat and ascending, or None."""

    def __init__(self, shape: torch.Size, dropped: Tensor | None) -> None:
        self.shape, self.dropped = shape, dropped

    def project(self, x: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
        kept = x if self.dropped is None else x.reshape(-1).index_fill(0, self.dropped, 0).view_as(x)
        return kept, kept @ A.T

    def gradient(self, t: Tensor, kept: Tensor) -> Tensor:
        return t.T @ kept

    def add_projected(self, dx: Tensor, t: Tensor, A: Tensor) -> Tensor:
        if self.dropped is None:
            return dx.addmm_(t, A)
        kept = dx.take(self.dropped)  # a dropped element gets no gradient here: put its value back afterwards
        return dx.addmm_(t, A).put_(self.dropped, kept)

    def mask(self) -> Tensor:
        empty = torch.empty(0, dtype=torch.int64)
        return mask_of(self.dropped if self.dropped is not None else empty, self.shape)


class _Counter(RankSide):
    """A mask that is a function of (seed, salt, position); dropped copies of x live for one product."""

    def __init__(self, shape: torch.Size, p: float, seed: Tensor, salt: int) -> None:
        self.shape, self.p, self.seed, self.salt = shape, p, seed, salt

    def project(self, x: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
        return x, self._drop(x) @ A.T

    def gradient(self, t: Tensor, kept: Tensor) -> Tensor:
        return t.T @ self._drop(kept)

    def add_projected(self, dx: Tensor, t: Tensor, A: Tensor) -> Tensor:
        from tunesmith.kernels.fused import dropout

        return dropout.add_dropped(dx, t @ A, self.p, self.seed, self.salt) if self.p else dx.addmm_(t, A)

    def mask(self) -> Tensor:
        return self._drop(torch.ones(self.shape, device=self.seed.device)) != 0

    def _drop(self, x: Tensor) -> Tensor:
        from tunesmith.kernels.fused import dropout

        return dropout.drop(x, self.p, self.seed, self.salt) if self.p else x


class _FusedCounter(_Counter):
    """The same mask, inside the products."""

    def project(self, x: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
        from tunesmith.kernels.fused import adapter

        return x, adapter.project(x, A, self.p, self.seed, self.salt)

    def gradient(self, t: Tensor, kept: Tensor) -> Tensor:
        from tunesmith.kernels.fused import adapter

        return adapter.lora_grad_A(t, kept, self.p, self.seed, self.salt)

    def add_projected(self, dx: Tensor, t: Tensor, A: Tensor) -> Tensor:
        from tunesmith.kernels.fused import adapter

        return adapter.add_projected(dx, t, A, self.p, self.seed, self.salt)
