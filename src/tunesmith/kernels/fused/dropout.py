"""Dropout whose mask is a function of (seed, salt, position), so that it is drawn again wherever it is needed, never stored.

The draws are Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): key = the 64-bit seed,
counter = (group, 0, salt, 0), and the four words of a call serve four neighbouring elements of a row. The seed lies on the
device and is read by the kernel: a CUDA graph replayed with a new value in it draws a new mask. The salt tells the layers
of one step apart. Nothing here scales by 1/(1-p): the caller folds that into its own factor.

Legend: T rows of K elements. A row owns ``G = ceil(K/4)`` groups; element (t, k) is word ``k % 4`` of group
``t G + k // 4``, which for K divisible by 4 is its flat index. Groups count in 32 bits: T·K may reach 2³³.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS = 4, 512


def drop(x: Tensor, p: float, seed: Tensor, salt: int) -> Tensor:
    """x where kept and 0 elsewhere, ``[T, K]``, unscaled.

    Args:
        x: ``[T, K]``, any stride between rows. p: chance that an element is dropped, in [0, 1).
        seed: int64 ``[1]`` on x's device. salt: any number in [0, 2³¹).
    """
    assert x.stride(1) == 1
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _drop[_grid(x)](
        x, out, *x.shape, x.stride(0), seed, salt, threshold(p), ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4, enable_fp_fusion=True
    )
    return out


def add_dropped(dx: Tensor, y: Tensor, p: float, seed: Tensor, salt: int) -> Tensor:
    """``dx += mask · y`` in place, both ``[T, K]`` with any stride between rows; the mask that `drop` draws."""
    assert dx.stride(1) == y.stride(1) == 1
    _add_dropped[_grid(dx)](
        dx,
        y,
        *dx.shape,
        dx.stride(0),
        y.stride(0),
        seed,
        salt,
        threshold(p),
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return dx


def threshold(p: float) -> int:
    """What a draw's upper 31 bits must reach to keep an element: 31, so that every p gives the kernels an int32."""
    assert 0 <= p < 1
    return min(round(p * 2**31), 2**31 - 1)


def draws_plain(count: int, seed: int, salt: int) -> Tensor:
    """The words behind the first ``count`` elements, int64 ``[count]`` holding 32 unsigned bits: Philox in torch."""
    c0 = torch.arange((count + 3) // 4)
    c1, c2, c3 = torch.zeros_like(c0), torch.full_like(c0, salt), torch.zeros_like(c0)
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    for _ in range(10):
        high0, low0 = _multiply(0xD2511F53, c0)
        high1, low1 = _multiply(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + 0x9E3779B9 & 0xFFFFFFFF, k1 + 0xBB67AE85 & 0xFFFFFFFF
    return torch.stack([c0, c1, c2, c3], dim=1).flatten()[:count]


def keep_mask_plain(count: int, p: float, seed: int, salt: int) -> Tensor:
    """The first ``count`` elements of the mask in flat order, bool ``[count]``: the plain twin of `keep_tile`.

    For a ``[T, K]`` tensor with K not divisible by 4, see `keep_plain`, which knows that every row starts a new group.
    """
    return draws_plain(count, seed, salt) >> 1 >= threshold(p)


def keep_plain(rows: int, columns: int, p: float, seed: int, salt: int) -> Tensor:
    """The mask of a ``[T, K]`` tensor, bool, on the CPU."""
    padded = (columns + 3) // 4 * 4
    return keep_mask_plain(rows * padded, p, seed, salt).view(rows, padded)[:, :columns]


def _multiply(constant: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """Upper and lower half of a 32 × 32 bit product; int64 overflows into the sign, which the masks take off again."""
    product = word * constant
    return product >> 32 & 0xFFFFFFFF, product & 0xFFFFFFFF


def _grid(x: Tensor) -> tuple[int, int]:
    return triton.cdiv(x.shape[0], ROWS), triton.cdiv(x.shape[1], COLUMNS)


@triton.jit
def keep_tile(seed, salt, threshold, row, group, groups, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Keep-mask of a tile, int1 ``[ROWS, COLUMNS]``, from row ``[ROWS]`` and group ``[COLUMNS / 4]`` int32 (groups = G)."""
    counter = row[:, None] * groups + group[None, :]
    a, b, c, d = tl.philox(seed, counter, 0, salt, 0)
    limit = threshold.to(tl.uint32)
    even = tl.join((a >> 1) >= limit, (c >> 1) >= limit)
    odd = tl.join((b >> 1) >= limit, (d >> 1) >= limit)
    return tl.reshape(tl.join(even, odd), [ROWS, COLUMNS])  # joined on a new last axis: a, b, c, d


@triton.jit
def _tile(rows, size, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Row and group numbers of this program's tile, its columns, and which of its elements exist."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    group = tl.program_id(1) * (COLUMNS // 4) + tl.arange(0, COLUMNS // 4)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    return row, group, column, (row < rows)[:, None] & (column < size)[None, :]


@triton.jit(do_not_specialize=["rows", "salt", "threshold"])
def _drop(x, out, rows, size, x_stride, seed, salt, threshold, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row, group, column, here = _tile(rows, size, ROWS, COLUMNS)
    keep = keep_tile(tl.load(seed), salt, threshold, row, group, (size + 3) // 4, ROWS, COLUMNS)
    line = row.to(tl.int64)[:, None]
    values = tl.load(x + line * x_stride + column[None, :], here, 0.0)  # all of them: a ragged load is not vectorised
    tl.store(out + line * size + column[None, :], tl.where(keep, values, 0.0), here)


@triton.jit(do_not_specialize=["rows", "salt", "threshold"])
def _add_dropped(
    dx, y, rows, size, dx_stride, y_stride, seed, salt, threshold, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    row, group, column, here = _tile(rows, size, ROWS, COLUMNS)
    keep = keep_tile(tl.load(seed), salt, threshold, row, group, (size + 3) // 4, ROWS, COLUMNS)
    line = row.to(tl.int64)[:, None]
    dx += line * dx_stride + column[None, :]
    values = tl.where(keep, tl.load(y + line * y_stride + column[None, :], here, 0.0).to(tl.float32), 0.0)
    tl.store(dx, (tl.load(dx, here, 0.0).to(tl.float32) + values).to(dx.dtype.element_ty), here)
