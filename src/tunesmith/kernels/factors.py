"""An adapter's factors as a linear computes with them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Weight = Callable[[], Iterable[Tensor]]
"""Gives a frozen weight as blocks of rows, in order."""


def in_type(factor: Tensor, dtype: torch.dtype) -> Tensor:
    """A factor in the compute type: the copy that training keeps up to date (see `training.flat`), or one made now."""
    copy = getattr(factor, "compute_copy", None)
    return copy if copy is not None and copy.dtype == dtype else factor.to(dtype)


def gradient_sum(factor: Tensor) -> Tensor | None:
    """Where training sums a factor's gradients, of its shape, if it wants them there at once (see `training.flat`)."""
    return getattr(factor, "gradient_sum", None)


def stacked(lora_A: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """``[R, K]``"""
    parts = [in_type(a, dtype) for a in lora_A]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


@dataclass(frozen=True)
class Behind:
    """What stands behind the columns of a linear's weight on a GPU: so many columns, zeros but for its lora_B, the factor
    ``[N, r]`` of the weight's type, from the column ``first`` on."""

    columns: int
    first: int
    factor: Tensor

    def write(self, place: Tensor, rows: slice) -> None:
        """Some rows of it, into ``[n, columns]``."""
        place.zero_()
        place[:, self.first : self.first + self.factor.shape[1]] = self.factor[rows]


def room(rank: int) -> int:
    """Columns behind a weight or an input that hold factors of so many ranks: a multiple of 16, so that rows stay aligned and
    kernels know it."""
    return -(-rank // 16) * 16
