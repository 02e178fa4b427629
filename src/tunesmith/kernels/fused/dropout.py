"""Dropout whose mask is a function of (seed, salt, position), so that it is drawn again wherever it is needed, never stored.

The draws are Philox 4x32-7 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; seven rounds are the fewest
that pass every test there): key = the 64-bit seed, counter = (group, 0, salt, 0), and the four words of a call serve eight
neighbouring elements of a row with 16 bits each, so that p is met to within 2⁻¹⁷. Drawing is most of what a mask costs.

The seed lies on the device and is read by the kernel: a CUDA graph replayed with a new value in it draws a new mask. The
salt tells the layers of one step apart. Nothing here scales by 1/(1-p): the caller folds that into its own factor.

Legend: T rows of K elements. A row owns ``G = ceil(K/8)`` groups; element (t, k) is half ``k % 8`` of group
``t G + k // 8``, the lower half of a word first; for K divisible by 8 that is its flat index. Groups count in 32 bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tunesmith.kernels.fused.kernel import kernel

ROWS, COLUMNS = 4, 512
ROUNDS = 7


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


def threshold(p: float) -> int:
    """What the 16 bits of an element must reach for it to be kept."""
    assert 0 <= p < 1
    return min(round(p * 2**16), 2**16 - 1)


def draws_plain(count: int, seed: int, salt: int) -> Tensor:
    """The halves behind the first ``count`` elements, int64 ``[count]`` holding 16 unsigned bits: Philox in torch."""
    c0 = torch.arange((count + 7) // 8)
    c1, c2, c3 = torch.zeros_like(c0), torch.full_like(c0, salt), torch.zeros_like(c0)
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    for _ in range(ROUNDS):
        high0, low0 = _multiply(0xD2511F53, c0)
        high1, low1 = _multiply(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + 0x9E3779B9 & 0xFFFFFFFF, k1 + 0xBB67AE85 & 0xFFFFFFFF
    words = torch.stack([c0, c1, c2, c3], dim=1).flatten()
    return torch.stack([words & 0xFFFF, words >> 16], dim=1).flatten()[:count]


def keep_mask_plain(count: int, p: float, seed: int, salt: int) -> Tensor:
    """The first ``count`` elements of the mask in flat order, bool ``[count]``: the plain twin of `keep_tile`.

    For a ``[T, K]`` tensor with K not divisible by 8, see `keep_plain`, which knows that every row starts a new group.
    """
    return draws_plain(count, seed, salt) >= threshold(p)


def keep_plain(rows: int, columns: int, p: float, seed: int, salt: int) -> Tensor:
    """The mask of a ``[T, K]`` tensor, bool, on the CPU."""
    padded = (columns + 7) // 8 * 8
    return keep_mask_plain(rows * padded, p, seed, salt).view(rows, padded)[:, :columns]


def _multiply(constant: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """Upper and lower half of a 32 × 32 bit product; int64 overflows into the sign, which the masks take off again."""
    product = word * constant
    return product >> 32 & 0xFFFFFFFF, product & 0xFFFFFFFF


def _grid(x: Tensor) -> tuple[int, int]:
    return triton.cdiv(x.shape[0], ROWS), triton.cdiv(x.shape[1], COLUMNS)


@triton.jit
def keep_tile(seed, salt, threshold, row, group, groups, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Keep-mask of a tile, int1 ``[ROWS, COLUMNS]``, from row ``[ROWS]`` and group ``[COLUMNS / 8]`` int32 (groups = G)."""
    counter = row[:, None] * groups + group[None, :]
    a, b, c, d = tl.philox(seed, counter, 0, salt, 0, n_rounds=7)
    limit = threshold.to(tl.uint32)
    # each join adds a last axis, so the index of an element is (upper bit of the word, lower bit of the word, half)
    low = tl.join(tl.join((a & 0xFFFF) >= limit, (c & 0xFFFF) >= limit), tl.join((b & 0xFFFF) >= limit, (d & 0xFFFF) >= limit))
    high = tl.join(tl.join((a >> 16) >= limit, (c >> 16) >= limit), tl.join((b >> 16) >= limit, (d >> 16) >= limit))
    return tl.reshape(tl.join(low, high), [ROWS, COLUMNS])


@triton.jit
def _tile(rows, size, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Row and group numbers of this program's tile, its columns, and which of its elements exist."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    group = tl.program_id(1) * (COLUMNS // 8) + tl.arange(0, COLUMNS // 8)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    return row, group, column, (row < rows)[:, None] & (column < size)[None, :]


@kernel(do_not_specialize=["rows", "salt", "threshold"])
def _drop(x, out, rows, size, x_stride, seed, salt, threshold, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row, group, column, here = _tile(rows, size, ROWS, COLUMNS)
    keep = keep_tile(tl.load(seed), salt, threshold, row, group, (size + 7) // 8, ROWS, COLUMNS)
    line = row.to(tl.int64)[:, None]
    values = tl.load(x + line * x_stride + column[None, :], here, 0.0)  # all of them: a ragged load is not vectorised
    tl.store(out + line * size + column[None, :], tl.where(keep, values, 0.0), here)
