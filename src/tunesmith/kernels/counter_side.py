"""The thin products of a LoRA linear on a GPU, dropout inside (the formulas: `rank_side`).

The mask is a function of a counter, drawn again in each product (see `fused.dropout`), so that x itself is kept for backward and
a captured step draws a new mask whenever it is replayed with another seed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tunesmith.kernels.dropout import step_seed
from tunesmith.kernels.factors import room

MAX_FUSED_RANK = 128


@dataclass(frozen=True)
class CounterSide:
    """One group's draw of dropout in one forward pass: a mask that is a function of (seed, salt, position). Here dropped copies of
    x live for one product each; up to `MAX_FUSED_RANK` they are never made (`_Fused`)."""

    shape: torch.Size
    p: float
    seed: Tensor
    salt: int

    @staticmethod
    def of(shape: torch.Size, rank: int, p: float, salt: int, device: torch.device) -> "CounterSide":
        """For inputs of a shape ``[T, K]``."""
        return (_Fused if rank <= MAX_FUSED_RANK else CounterSide)(shape, p, step_seed(device), salt)

    def project(self, x: Tensor, A: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """``xA = s drop(x) Aᵀ``, ``[T, R]``, and before it x with xA in the `room` behind its columns, which are zeros from R
        on: ``[T, K + room]``."""
        (tokens, size), rank = x.shape, A.shape[0]
        wide = x.new_empty(tokens, size + room(rank))
        wide[:, :size] = x
        xA = (self._drop(x) @ A.T).mul_(scale)
        wide[:, size : size + rank] = xA
        wide[:, size + rank :] = 0
        return wide, xA

    def output_gradient(self, dy: Tensor, xA: Tensor, out: Tensor) -> None:
        """Adds ``dB = dyᵀ xA`` of one member to ``[n, r]``: dy ``[T, n]``, xA ``[T, r]``."""
        out.add_(dy.T @ xA if dy.dtype == out.dtype else torch.mm(dy.T, xA, out_dtype=out.dtype))

    def input_gradient(self, t: Tensor, x: Tensor, scale: float, out: Tensor) -> None:
        """Adds ``dA = s tᵀ drop(x)`` to ``[R, K]``, from t ``[T, R]``, which is ``dy B``."""
        out.add_((t.T @ self._drop(x)).mul_(scale))

    def spread(self, t: Tensor, A: Tensor, scale: float, dx: Tensor) -> None:
        """Adds ``s drop(t A)`` to dx ``[T, K]``."""
        if self.p == 0:
            dx.addmm_(t, A, alpha=scale)
        else:
            dx.add_(self._drop(t @ A), alpha=scale)

    def mask(self) -> Tensor:
        """Which elements are kept, bool ``[T, K]``."""
        return self._drop(torch.ones(self.shape, device=self.seed.device)) != 0

    def _drop(self, x: Tensor) -> Tensor:
        from tunesmith.kernels.fused import dropout

        return dropout.drop(x, self.p, self.seed, self.salt) if self.p else x


class _Fused(CounterSide):
    """The same mask, inside the products."""

    def project(self, x: Tensor, A: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        from tunesmith.kernels.fused import input_side

        return input_side.project(x, A, scale, self.p, self.seed, self.salt)

    def output_gradient(self, dy: Tensor, xA: Tensor, out: Tensor) -> None:
        from tunesmith.kernels.fused import output_side

        if dy.stride(1) == 1:
            output_side.output_gradient(dy, xA, out)
        else:
            super().output_gradient(dy, xA, out)

    def input_gradient(self, t: Tensor, x: Tensor, scale: float, out: Tensor) -> None:
        from tunesmith.kernels.fused import input_side

        input_side.input_gradient(t, x, out, scale, self.p, self.seed, self.salt)

    def spread(self, t: Tensor, A: Tensor, scale: float, dx: Tensor) -> None:
        from tunesmith.kernels.fused import input_side

        input_side.spread(t, A, dx, scale, self.p, self.seed, self.salt)
