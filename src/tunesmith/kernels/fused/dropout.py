"""Dropout whose mask is a function of (seed, salt, position), so that it is drawn again wherever it is needed, never stored.

The draws are Philox 2x32-7 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; seven rounds are the fewest
that pass every test there): counter = (group, salt), key = the seed's two halves in one. The two words of a call serve eight
neighbouring elements of a row. Each compares a word, turned so that a byte of its own stands first, with p: it is dropped with
that chance to within 2⁻³², and what it shares with its neighbours, the lower bytes, counts once in 256 times. Drawing is most
of what a mask costs; this is half of what four words of 16 bits an element cost.

The seed lies on the device and is read by the kernel: a CUDA graph replayed with a new value in it draws a new mask. The
salt tells the layers of one step apart. Nothing here scales by 1/(1-p): the caller folds that into its own factor.

Legend: T rows of K elements. A row owns ``G = ceil(K/8)`` groups; element (t, k) is byte ``k % 8`` of group
``t G + k // 8``, the lowest byte of a word first; for K divisible by 8 that is its flat index. Groups count in 32 bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tunesmith.kernels.fused.kernel import kernel

ROWS, COLUMNS = 4, 512
ROUNDS: tl.constexpr = tl.constexpr(7)
MULTIPLIER: tl.constexpr = tl.constexpr(0xD256D193)
GOLDEN: tl.constexpr = tl.constexpr(0x9E3779B9)
"""The authors' constants: of a round, and what the key grows by."""


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
    """What the 32 bits of an element must reach for it to be kept, as kernels take it: a signed number of those bits."""
    limit = _limit(p)
    return limit - 2**32 if limit >= 2**31 else limit


def _limit(p: float) -> int:
    assert 0 <= p < 1
    return min(round(p * 2**32), 2**32 - 1)


def words_plain(count: int, seed: int, salt: int) -> Tensor:
    """The first ``count`` words, int64 ``[count]`` holding 32 unsigned bits: Philox in torch."""
    c0 = torch.arange((count + 1) // 2)
    c1 = torch.full_like(c0, salt)
    key = (seed ^ (seed >> 32) * GOLDEN.value) & 0xFFFFFFFF
    for _ in range(ROUNDS.value):
        product = c0 * MULTIPLIER.value  # int64 overflows into the sign, which the masks take off again
        c0, c1 = (product >> 32 & 0xFFFFFFFF) ^ key ^ c1, product & 0xFFFFFFFF
        key = key + GOLDEN.value & 0xFFFFFFFF
    return torch.stack([c0, c1], dim=1).flatten()[:count]


def draws_plain(count: int, seed: int, salt: int) -> Tensor:
    """What the first ``count`` elements are judged by, int64 ``[count]`` holding 32 unsigned bits: their words, turned."""
    words = words_plain((count + 3) // 4, seed, salt)
    turned = [(words << shift | words >> 32 - shift) & 0xFFFFFFFF for shift in (24, 16, 8, 0)]
    return torch.stack(turned, dim=1).flatten()[:count]


def keep_mask_plain(count: int, p: float, seed: int, salt: int) -> Tensor:
    """The first ``count`` elements of the mask in flat order, bool ``[count]``: the plain twin of `keep_tile`.

    For a ``[T, K]`` tensor with K not divisible by 8, see `keep_plain`, which knows that every row starts a new group.
    """
    return draws_plain(count, seed, salt) >= _limit(p)


def keep_plain(rows: int, columns: int, p: float, seed: int, salt: int) -> Tensor:
    """The mask of a ``[T, K]`` tensor, bool, on the CPU."""
    padded = (columns + 7) // 8 * 8
    return keep_mask_plain(rows * padded, p, seed, salt).view(rows, padded)[:, :columns]


def _grid(x: Tensor) -> tuple[int, int]:
    return triton.cdiv(x.shape[0], ROWS), triton.cdiv(x.shape[1], COLUMNS)


@triton.jit
def keep_tile(seed, salt, threshold, row, group, groups, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Keep-mask of a tile, int1 ``[ROWS, COLUMNS]``, from row ``[ROWS]`` and group ``[COLUMNS / 8]`` int32 (groups = G)."""
    first, second = _philox(row[:, None] * groups + group[None, :], salt, seed)
    limit = threshold.to(tl.uint32)
    # each join adds a last axis, so the index of an element is (word, upper bit of the byte, lower bit of the byte)
    low = tl.join(_at_least(first, second, 24, limit), _at_least(first, second, 8, limit))
    high = tl.join(_at_least(first, second, 16, limit), _at_least(first, second, 0, limit))
    return tl.reshape(tl.join(low, high), [ROWS, COLUMNS])


@triton.jit
def _philox(counter, salt, seed):
    """Philox 2x32-7, two words for each counter."""
    key = (seed ^ (seed >> 32) * GOLDEN).to(tl.uint32)
    c0, c1 = counter.to(tl.uint32), (counter * 0 + salt).to(tl.uint32)
    for _ in tl.static_range(ROUNDS):
        high, low = tl.umulhi(c0, MULTIPLIER), c0 * MULTIPLIER
        c0, c1 = high ^ key ^ c1, low
        key += GOLDEN
    return c0, c1


@triton.jit
def _at_least(first, second, SHIFT: tl.constexpr, limit):
    """Whether two words, turned left by so many bits, reach the limit; in a last axis of two."""
    if SHIFT > 0:
        first = (first << SHIFT) | (first >> (32 - SHIFT))
        second = (second << SHIFT) | (second >> (32 - SHIFT))
    return tl.join(first >= limit, second >= limit)


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
