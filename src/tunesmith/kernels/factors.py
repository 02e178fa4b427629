"""An adapter's factors as a linear computes with them."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

Weight = Callable[[], Iterable[Tensor]]
"""Gives a frozen weight as blocks of rows, in order."""


def in_type(factor: Tensor, dtype: torch.dtype) -> Tensor:
    """A factor in the compute type: the copy that training keeps up to date (see `training.flat`), or one made now."""
    copy = getattr(factor, "compute_copy", None)
    return copy if copy is not None and copy.dtype == dtype else factor.to(dtype)


def stacked(lora_A: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """``[R, K]``"""
    parts = [in_type(a, dtype) for a in lora_A]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def room(rank: int) -> int:
    """Columns behind a weight or an input that hold factors of so many ranks: a multiple of 16, so that rows stay aligned and
    kernels know it."""
    return -(-rank // 16) * 16
