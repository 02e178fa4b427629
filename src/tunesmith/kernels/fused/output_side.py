"""The thin matrix product of an adapter on the side of its outputs, ``dB = dyᵀ xA`` (Hu et al. 2021, arXiv 2106.09685).

Legend: T tokens, N outputs of one linear, r its rank (at most 128; padded inside to a power of two of 16 or more), xA
``[T, r]`` as `input_side.project` gives it. The product is of the given type with fp32 sums.
"""

import triton
import triton.language as tl
from torch import Tensor

from tunesmith.kernels.fused.kernel import kernel
from tunesmith.kernels.fused.split_sum import add_to
from tunesmith.kernels.fused.tile import Tile, padded_rank, widen

OUTPUT = Tile(128, 64, 4, 2)


def output_gradient(dy: Tensor, xA: Tensor, out: Tensor) -> None:
    """Adds ``dyᵀ xA`` to ``[N, r]`` of any type, from dy ``[T, N]`` and xA ``[T, r]`` of one type, any stride between rows."""
    (tokens, size), rank = dy.shape, xA.shape[1]
    assert out.shape == (size, rank)
    assert xA.stride(1) == 1
    assert out.is_contiguous()
    tile = OUTPUT.of(dy)
    _gradient_b[(triton.cdiv(size, tile.columns),)](
        dy, xA, out, tokens, size, rank, dy.stride(0), xA.stride(0),
        WIDEN=widen(dy), TOKENS=tile.tokens, COLUMNS=tile.columns, RANKS=padded_rank(dy, rank),
        num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=True,
    )  # fmt: skip


def output_gradient_plain(dy: Tensor, xA: Tensor) -> Tensor:
    """The plain twin of `output_gradient`, in fp32."""
    return dy.float().T @ xA.float()


@kernel(do_not_specialize=["tokens"])
def _gradient_b(
    dy, xA, grad_B, tokens, size, rank, dy_stride, xA_stride,
    WIDEN: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr, RANKS: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    r = tl.arange(0, RANKS)
    cell = column[:, None] * rank + r[None, :]
    inside = (column < size)[:, None] & (r < rank)[None, :]
    total = tl.zeros([COLUMNS, RANKS], dtype=tl.float32)
    for step in range(0, tl.cdiv(tokens, TOKENS)):
        row = step * TOKENS + tl.arange(0, TOKENS)
        line = row.to(tl.int64)[:, None]
        slope = tl.load(dy + line * dy_stride + column[None, :], (row < tokens)[:, None] & (column < size)[None, :], 0.0)
        part = tl.load(xA + line * xA_stride + r[None, :], (row < tokens)[:, None] & (r < rank)[None, :], 0.0)
        if WIDEN:
            slope, part = slope.to(tl.float32), part.to(tl.float32)
        total = tl.dot(tl.trans(slope), part, total, input_precision="ieee")
    add_to(grad_B + cell, total, inside)
