"""The thin matrix products of an adapter on the side of its outputs.

Hu et al. 2021 (arXiv 2106.09685):

    add_expanded        y + xA Bᵀ                        on the way forward
    output_gradients    t = s dy B,  dB = dyᵀ xA         one launch for both

Legend: T tokens, N outputs of one linear, r its rank (at most 128; padded inside to a power of two of 16 or more), xA
``[T, r]`` as `input_side.project` gives it. Products are of the given type with fp32 sums.

What a young adapter adds is less than half of y's last digit in bf16, and y has been rounded already: rounded to the nearest,
their sum is y again, and the first updates of a training would have no effect. In training the sum is therefore rounded up or
down by chance, up the more often the nearer it is to the upper neighbour (Gupta et al. 2015, arXiv 1502.02551), so that on
average nothing is lost. (Adding the thin product first and letting the thick one add to it does not help: cuBLAS rounds a
bf16 product before it adds.)
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tunesmith.kernels.fused.kernel import kernel
from tunesmith.kernels.fused.split_sum import arrivals, last_to_arrive, shares, sum_shares
from tunesmith.kernels.fused.tile import Tile, padded_rank, unroll, widen

EXPAND = Tile(64, 128, 4, 1, 1, 1)
PULL = Tile(64, 128, 4, 3, 256, 256)
OUTPUT = Tile(128, 64, 4, 3, 1, 1)


def add_expanded(xA: Tensor, B: Tensor, y: Tensor, seed: Tensor | None = None, salt: int = 0) -> None:
    """``y + xA Bᵀ`` in place, from y ``[T, N]``, xA ``[T, r]`` and B ``[N, r]``, contiguous, of one type; any stride between the
    rows of y and xA.

    Args:
        seed: int64 ``[1]``, for sums rounded by chance if y is bf16; None for sums rounded to the nearest. salt: tells this
            draw from others of the same seed.
    """
    (tokens, rank), size = xA.shape, B.shape[0]
    ranks = padded_rank(y, B, rank)
    assert xA.dtype == B.dtype == y.dtype
    assert xA.stride(1) == 1
    tile, chance = EXPAND.of(y), seed is not None and y.dtype == torch.bfloat16
    _add_expanded[(triton.cdiv(tokens, tile.tokens), triton.cdiv(size, tile.columns))](
        xA, B, y, tokens, size, rank, xA.stride(0), y.stride(0), seed if chance else y, salt,
        CHANCE=chance, WIDEN=widen(y), TOKENS=tile.tokens, COLUMNS=tile.columns, RANKS=ranks, num_warps=tile.warps,
        enable_fp_fusion=True,
    )  # fmt: skip


def output_gradients(dy: Tensor, B: Tensor, xA: Tensor, scale: float, t: Tensor, dtype: torch.dtype) -> Tensor:
    """``dyᵀ xA``, ``[N, r]`` of ``dtype``, and ``scale · dy B`` written into t ``[T, r]``.

    Args:
        dy: ``[T, N]``; xA: ``[T, r]``; t: any stride between rows, all of one type. B: ``[N, r]``, contiguous.
    """
    (tokens, size), rank = dy.shape, B.shape[1]
    ranks = padded_rank(dy, B, rank)
    assert xA.stride(1) == t.stride(1) == 1
    pull, tile = PULL.of(dy), OUTPUT.of(dy)
    tiles = triton.cdiv(tokens, pull.tokens)
    steps, splits = shares(size, tiles, pull.columns, pull.least, pull.programs)
    sums = torch.empty(splits, tokens, rank, dtype=torch.float32, device=dy.device)
    grad_B = torch.empty(size, rank, dtype=dtype, device=dy.device)
    _output_gradients[(tiles * splits + triton.cdiv(size, tile.columns),)](
        dy, B, xA, t, grad_B, sums, arrivals(dy.device), tokens, size, rank, dy.stride(0), xA.stride(0), t.stride(0),
        tiles, splits, steps, scale,
        WIDEN=widen(dy), TOKENS=pull.tokens, STEP=pull.columns, ROWS=tile.tokens, COLUMNS=tile.columns, RANKS=ranks,
        UNROLL=unroll(ranks), num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=True,
    )  # fmt: skip
    return grad_B


def add_expanded_plain(xA: Tensor, B: Tensor, y: Tensor) -> Tensor:
    """The plain twin of `add_expanded`, rounded to the nearest."""
    return (y.float() + xA.float() @ B.float().T).to(y.dtype)


def output_gradients_plain(dy: Tensor, B: Tensor, xA: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The plain twin of `output_gradients`: dB in fp32, and t."""
    return dy.float().T @ xA.float(), (scale * (dy.float() @ B.float())).to(dy.dtype)


@kernel(do_not_specialize=["tokens", "salt"])
def _add_expanded(
    xA, B, y, tokens, size, rank, xA_stride, y_stride, seed, salt,
    CHANCE: tl.constexpr, WIDEN: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr, RANKS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    r = tl.arange(0, RANKS)
    line = row.to(tl.int64)[:, None]
    part = tl.load(xA + line * xA_stride + r[None, :], (row < tokens)[:, None] & (r < rank)[None, :], 0.0)
    factor = tl.load(B + column[:, None] * rank + r[None, :], (column < size)[:, None] & (r < rank)[None, :], 0.0)
    if WIDEN:
        part, factor = part.to(tl.float32), factor.to(tl.float32)
    here = (row < tokens)[:, None] & (column < size)[None, :]
    place = y + line * y_stride + column[None, :]
    total = tl.load(place, here, 0.0).to(tl.float32) + tl.dot(part, tl.trans(factor), input_precision="ieee")
    if CHANCE:
        total = _rounded_by_chance(total, tl.load(seed), salt, row[:, None] * size + column[None, :])
    tl.store(place, total.to(y.dtype.element_ty), here)


@triton.jit
def _rounded_by_chance(x, seed, salt, index):
    """x with its lower 16 bits, those bf16 has not, added to a number of 16 bits drawn for this index, and cut off."""
    draw = index.to(tl.uint32) ^ (seed + (seed >> 32)).to(tl.uint32) * 0x9E3779B1 ^ salt.to(tl.uint32) * 0x85EBCA77
    # Two rounds of the finaliser of MurmurHash3 (Appleby): every bit of the index reaches the lower 16.
    draw = (draw ^ (draw >> 16)) * 0x85EBCA6B
    draw = (draw ^ (draw >> 13)) * 0xC2B2AE35
    draw = draw ^ (draw >> 16)
    return ((x.to(tl.uint32, bitcast=True) + (draw & 0xFFFF)) & 0xFFFF0000).to(tl.float32, bitcast=True)


@kernel(do_not_specialize=["tokens", "tiles", "splits", "steps", "scale"])
def _output_gradients(
    dy, B, xA, t, grad_B, sums, arrivals, tokens, size, rank, dy_stride, xA_stride, t_stride, tiles, splits, steps, scale,
    WIDEN: tl.constexpr, TOKENS: tl.constexpr, STEP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    RANKS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """The first programs make t, block by block of tokens, the others dB, block by block of columns: one wants all columns of
    a token, the other all tokens of a column, and side by side they fill the GPU."""
    program = tl.program_id(0)
    if program < tiles * splits:
        _pull(
            dy, B, t, sums, arrivals, tokens, size, rank, dy_stride, t_stride, program // splits, program % splits, splits,
            steps, scale, WIDEN, TOKENS, STEP, RANKS, UNROLL,
        )  # fmt: skip
    else:
        _gradient_b(dy, xA, grad_B, tokens, size, rank, dy_stride, xA_stride, program - tiles * splits, WIDEN, ROWS, COLUMNS, RANKS)


@triton.jit
def _pull(
    dy, B, t, sums, arrivals, tokens, size, rank, dy_stride, t_stride, tile, share, splits, steps, scale,
    WIDEN: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr, RANKS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    row = tile * TOKENS + tl.arange(0, TOKENS)
    r = tl.arange(0, RANKS)
    line = row.to(tl.int64)[:, None]
    here = (row < tokens)[:, None] & (r < rank)[None, :]
    total = tl.zeros([TOKENS, RANKS], dtype=tl.float32)
    for step in range(share * steps, tl.minimum((share + 1) * steps, tl.cdiv(size, COLUMNS))):
        column = step * COLUMNS + tl.arange(0, COLUMNS)
        slope = tl.load(dy + line * dy_stride + column[None, :], (row < tokens)[:, None] & (column < size)[None, :], 0.0)
        factor = tl.load(B + column[:, None] * rank + r[None, :], (column < size)[:, None] & (r < rank)[None, :], 0.0)
        if WIDEN:
            slope, factor = slope.to(tl.float32), factor.to(tl.float32)
        total = tl.dot(slope, factor, total, input_precision="ieee")
    out = t + line * t_stride + r[None, :]
    if splits > 1:
        slot = line * rank + r[None, :]
        tl.store(sums + share.to(tl.int64) * tokens * rank + slot, total, here)
        if last_to_arrive(arrivals + tile, splits):
            total = sum_shares(sums, slot, here, splits, tokens * rank, UNROLL)
            tl.store(out, (scale * total).to(t.dtype.element_ty), here)
    else:
        tl.store(out, (scale * total).to(t.dtype.element_ty), here)


@triton.jit
def _gradient_b(
    dy, xA, grad_B, tokens, size, rank, dy_stride, xA_stride, tile,
    WIDEN: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr, RANKS: tl.constexpr,
):  # fmt: skip
    column = tile * COLUMNS + tl.arange(0, COLUMNS)
    r = tl.arange(0, RANKS)
    total = tl.zeros([COLUMNS, RANKS], dtype=tl.float32)
    for step in range(0, tl.cdiv(tokens, TOKENS)):
        row = step * TOKENS + tl.arange(0, TOKENS)
        line = row.to(tl.int64)[:, None]
        slope = tl.load(dy + line * dy_stride + column[None, :], (row < tokens)[:, None] & (column < size)[None, :], 0.0)
        part = tl.load(xA + line * xA_stride + r[None, :], (row < tokens)[:, None] & (r < rank)[None, :], 0.0)
        if WIDEN:
            slope, part = slope.to(tl.float32), part.to(tl.float32)
        total = tl.dot(tl.trans(slope), part, total, input_precision="ieee")
    cell = column[:, None] * rank + r[None, :]
    tl.store(grad_B + cell, total.to(grad_B.dtype.element_ty), (column < size)[:, None] & (r < rank)[None, :])
