"""Parts of one buffer to where each belongs, rounded on the way: one launch for all, wherever they lie."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from tunesmith.kernels.fused.kernel import kernel

ELEMENTS = 2048
"""Of a tile."""


class Scatter:
    """Matrices of one type, any stride between their rows, that are filled from parts of one buffer."""

    def __init__(self, offsets: Sequence[int], targets: Sequence[Tensor]) -> None:
        """offsets: where in the buffer each of the targets ``[n, r]`` begins, one row after the other."""
        assert all(target.stride(1) == 1 for target in targets)
        self.targets = list(targets)  # alive as long as their addresses are used
        lines = [
            (offset, target.data_ptr(), target.shape[0], target.shape[1], target.stride(0))
            for offset, target in zip(offsets, targets)
        ]
        self.table = torch.tensor(lines, dtype=torch.int64, device=targets[0].device)
        self.ranks = triton.next_power_of_2(max(target.shape[1] for target in targets))
        self.rows = max(1, ELEMENTS // self.ranks)
        self.grid = (len(lines), triton.cdiv(max(target.shape[0] for target in targets), self.rows))

    def __call__(self, buffer: Tensor) -> None:
        """Fill them from the buffer ``[*]``, in a type of its own."""
        _scatter[self.grid](
            buffer, self.table, self.targets[0], ROWS=self.rows, RANKS=self.ranks, num_warps=4, enable_fp_fusion=True
        )


@kernel()
def _scatter(buffer, table, like, ROWS: tl.constexpr, RANKS: tl.constexpr):
    table += tl.program_id(0) * 5
    offset, address = tl.load(table), tl.load(table + 1)
    rows, rank, stride = tl.load(table + 2), tl.load(table + 3), tl.load(table + 4)
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None]
    column = tl.arange(0, RANKS)[None, :]
    here = (row < rows) & (column < rank)
    values = tl.load(buffer + offset + row * rank + column, here, 0.0)
    tl.store(address.to(like.dtype) + row * stride + column, values.to(like.dtype.element_ty), here)
