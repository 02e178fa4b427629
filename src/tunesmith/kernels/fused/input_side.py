"""The thin matrix products of an adapter that read x, dropout inside them, so that no dropped copy of x is ever stored.

Hu et al. 2021 (arXiv 2106.09685). With the keep-mask M of `dropout`, drawn again in each, never scaled:

    project           xA = s drop(x) Aᵀ, and x with xA behind it      on the way forward
    input_gradient    dA = s tᵀ drop(x)
    spread            dx + s drop(t A)

Legend: T tokens, K features, R the sum of ranks of linears that share x (at most 128; padded inside to a power of two of 16
or more), t ``[T, R]`` the rank side's gradient. Products are of x's type with fp32 sums.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tunesmith.kernels.factors import room
from tunesmith.kernels.fused.dropout import keep_tile, threshold
from tunesmith.kernels.fused.kernel import kernel
from tunesmith.kernels.fused.split_sum import add_to, arrivals, last_to_arrive, shares, sum_shares
from tunesmith.kernels.fused.tile import Tile, padded_rank, unroll, widen

PROJECT = Tile(32, 64, 4, 4, 256, 256)
INPUT = Tile(32, 64, 4, 3, 1024, 64)
SPREAD = Tile(32, 64, 4, 3)


def project(
    x: Tensor, A: Tensor, scale: float = 1.0, p: float = 0.0, seed: Tensor | None = None, salt: int = 0
) -> tuple[Tensor, Tensor]:
    """x with ``scale · drop(x) Aᵀ`` in the `room` behind it, zeros from R on, ``[T, K + room]``; and that alone, ``[T, R]``.

    Args:
        x: ``[T, K]``, any stride between rows. A: ``[R, K]``, contiguous; may be wider, and is rounded as it is read.
        p, seed, salt: as in `dropout.drop`; p = 0 draws no mask and needs no seed.
    """
    (tokens, size), rank = x.shape, A.shape[0]
    ranks = padded_rank(x, rank)
    assert A.is_contiguous()
    tile = PROJECT.of(x)
    tiles = triton.cdiv(tokens, tile.tokens)
    steps, splits = shares(size, tiles, tile.columns, tile.least, tile.programs)
    sums = torch.empty(splits, tokens, rank, dtype=torch.float32, device=x.device)
    wide = torch.empty(tokens, size + room(rank), dtype=x.dtype, device=x.device)
    out = torch.empty(tokens, rank, dtype=x.dtype, device=x.device)
    _project[(tiles, splits)](
        x, A, sums, wide, out, arrivals(x.device), tokens, size, rank, x.stride(0), wide.shape[1], steps, scale,
        x if seed is None else seed, salt, threshold(p),
        DROP=p > 0, WIDEN=widen(x), TOKENS=tile.tokens, COLUMNS=tile.columns, RANKS=ranks, UNROLL=unroll(ranks),
        num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=True,
    )  # fmt: skip
    return wide, out


def input_gradient(
    t: Tensor, x: Tensor, out: Tensor, scale: float = 1.0, p: float = 0.0, seed: Tensor | None = None, salt: int = 0
) -> None:
    """Adds ``scale · tᵀ drop(x)`` to ``[R, K]`` of any type, from t ``[T, R]`` of x's type, any stride between rows; else as
    `project`. In fp32 it is rounded before it is added, as what autograd adds is, so that a gradient has the same digits either
    way: hence no multiplication is fused with an addition."""
    (tokens, size), rank = x.shape, t.shape[1]
    ranks = padded_rank(x, rank)
    assert t.dtype == x.dtype
    assert t.stride(1) == 1
    assert out.shape == (rank, size)
    assert out.is_contiguous()
    tile = INPUT.of(x)
    tiles = triton.cdiv(size, tile.columns)
    steps, splits = shares(tokens, tiles, tile.tokens, tile.least, tile.programs)
    sums = torch.empty(splits, rank, size, dtype=torch.float32, device=x.device)
    _input_gradient[(tiles, splits)](
        t, x, out, sums, arrivals(x.device), tokens, size, rank, t.stride(0), x.stride(0), steps, scale,
        x if seed is None else seed, salt, threshold(p),
        DROP=p > 0, WIDEN=widen(x), TOKENS=tile.tokens, COLUMNS=tile.columns, RANKS=ranks, UNROLL=unroll(ranks),
        num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=False,
    )  # fmt: skip


def spread(t: Tensor, A: Tensor, dx: Tensor, scale: float = 1.0, p: float = 0.0, seed: Tensor | None = None, salt: int = 0) -> None:
    """Adds ``scale · drop(t A)`` to dx ``[T, K]``, of t's type, any stride between rows; else as `project`."""
    (tokens, size), rank = dx.shape, A.shape[0]
    assert dx.dtype == t.dtype
    assert dx.stride(1) == t.stride(1) == 1
    assert A.is_contiguous()
    tile = SPREAD.of(dx)
    _spread[(triton.cdiv(tokens, tile.tokens), triton.cdiv(size, tile.columns))](
        t, A, dx, tokens, size, rank, t.stride(0), dx.stride(0), scale, dx if seed is None else seed, salt, threshold(p),
        DROP=p > 0, WIDEN=widen(dx), TOKENS=tile.tokens, COLUMNS=tile.columns, RANKS=padded_rank(dx, rank),
        num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=True,
    )  # fmt: skip


def project_plain(x: Tensor, A: Tensor, keep: Tensor, scale: float = 1.0) -> Tensor:
    """The plain twin of `project`; keep: the mask, bool ``[T, K]``."""
    return (scale * ((x * keep).float() @ A.to(x.dtype).float().T)).to(x.dtype)


def input_gradient_plain(t: Tensor, x: Tensor, keep: Tensor, scale: float = 1.0) -> Tensor:
    """The plain twin of `input_gradient`."""
    return scale * (t.float().T @ (x * keep).float())


def spread_plain(t: Tensor, A: Tensor, dx: Tensor, keep: Tensor, scale: float = 1.0) -> Tensor:
    """What dx is after `spread`."""
    return (dx.float() + scale * keep * (t.float() @ A.to(t.dtype).float())).to(t.dtype)


@kernel(do_not_specialize=["tokens", "steps", "scale", "salt", "threshold"])
def _project(
    x, A, sums, wide, out, arrivals, tokens, size, rank, x_stride, wide_stride, steps, scale, seed, salt, threshold,
    DROP: tl.constexpr, WIDEN: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr, RANKS: tl.constexpr,
    UNROLL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    share, splits = tl.program_id(1), tl.num_programs(1)
    r = tl.arange(0, RANKS)
    line = row.to(tl.int64)[:, None]
    if DROP:
        key = tl.load(seed)
    total = tl.zeros([TOKENS, RANKS], dtype=tl.float32)
    for step in range(share * steps, tl.minimum((share + 1) * steps, tl.cdiv(size, COLUMNS))):
        column = step * COLUMNS + tl.arange(0, COLUMNS)
        inside = (row < tokens)[:, None] & (column < size)[None, :]
        values = tl.load(x + line * x_stride + column[None, :], inside, 0.0)
        tl.store(wide + line * wide_stride + column[None, :], values, inside)
        if DROP:
            group = step * (COLUMNS // 8) + tl.arange(0, COLUMNS // 8)
            keep = keep_tile(key, salt, threshold, row, group, (size + 7) // 8, TOKENS, COLUMNS)
            values = tl.where(keep, values, 0.0)
        factor = tl.load(A + r[:, None] * size + column[None, :], (r < rank)[:, None] & (column < size)[None, :], 0.0)
        factor = tl.trans(factor.to(values.dtype))
        if WIDEN:
            values, factor = values.to(tl.float32), factor.to(tl.float32)
        total = tl.dot(values, factor, total, input_precision="ieee")
    slot = line * rank + r[None, :]
    here = (row < tokens)[:, None] & (r < rank)[None, :]
    behind = wide + line * wide_stride + size + r[None, :]
    free = (row < tokens)[:, None] & (size + r < wide_stride)[None, :]
    if splits > 1:
        tl.store(sums + share.to(tl.int64) * tokens * rank + slot, total, here)
        if last_to_arrive(arrivals + tl.program_id(0), splits):
            total = sum_shares(sums, slot, here, splits, tokens * rank, UNROLL)
            tl.store(out + slot, (scale * total).to(out.dtype.element_ty), here)
            tl.store(behind, (scale * total).to(out.dtype.element_ty), free)
    else:
        tl.store(out + slot, (scale * total).to(out.dtype.element_ty), here)
        tl.store(behind, (scale * total).to(out.dtype.element_ty), free)


@kernel(do_not_specialize=["tokens", "steps", "scale", "salt", "threshold"])
def _input_gradient(
    t, x, grad_A, sums, arrivals, tokens, size, rank, t_stride, x_stride, steps, scale, seed, salt, threshold,
    DROP: tl.constexpr, WIDEN: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr, RANKS: tl.constexpr,
    UNROLL: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    share, splits = tl.program_id(1), tl.num_programs(1)
    r = tl.arange(0, RANKS)
    cell = r[:, None] * size + column[None, :]
    inside = (r < rank)[:, None] & (column < size)[None, :]
    if DROP:
        key = tl.load(seed)
        group = tl.program_id(0) * (COLUMNS // 8) + tl.arange(0, COLUMNS // 8)
    total = tl.zeros([RANKS, COLUMNS], dtype=tl.float32)
    for step in range(share * steps, tl.minimum((share + 1) * steps, tl.cdiv(tokens, TOKENS))):
        row = step * TOKENS + tl.arange(0, TOKENS)
        line = row.to(tl.int64)[:, None]
        values = tl.load(x + line * x_stride + column[None, :], (row < tokens)[:, None] & (column < size)[None, :], 0.0)
        slope = tl.load(t + line * t_stride + r[None, :], (row < tokens)[:, None] & (r < rank)[None, :], 0.0)
        if WIDEN:
            values, slope = values.to(tl.float32), slope.to(tl.float32)
        if DROP:
            keep = keep_tile(key, salt, threshold, row, group, (size + 7) // 8, TOKENS, COLUMNS)
            values = tl.where(keep, values, 0.0)
        total = tl.dot(tl.trans(slope), values, total, input_precision="ieee")
    total *= scale
    if splits > 1:
        tl.store(sums + (share * rank).to(tl.int64) * size + cell, total, inside)
        if last_to_arrive(arrivals + tl.program_id(0), splits):
            total = sum_shares(sums, cell, inside, splits, rank * size, UNROLL)
            add_to(grad_A + cell, total, inside)
    else:
        add_to(grad_A + cell, total, inside)


@kernel(do_not_specialize=["tokens", "scale", "salt", "threshold"])
def _spread(
    t, A, dx, tokens, size, rank, t_stride, dx_stride, scale, seed, salt, threshold,
    DROP: tl.constexpr, WIDEN: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr, RANKS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    r = tl.arange(0, RANKS)
    line = row.to(tl.int64)[:, None]
    here = (row < tokens)[:, None] & (column < size)[None, :]
    place = dx + line * dx_stride + column[None, :]
    before = tl.load(place, here, 0.0)
    slope = tl.load(t + line * t_stride + r[None, :], (row < tokens)[:, None] & (r < rank)[None, :], 0.0)
    factor = tl.load(A + r[:, None] * size + column[None, :], (r < rank)[:, None] & (column < size)[None, :], 0.0)
    factor = factor.to(slope.dtype)
    if WIDEN:
        slope, factor = slope.to(tl.float32), factor.to(tl.float32)
    change = tl.dot(slope, factor, input_precision="ieee") * scale
    if DROP:
        group = tl.program_id(1) * (COLUMNS // 8) + tl.arange(0, COLUMNS // 8)
        keep = keep_tile(tl.load(seed), salt, threshold, row, group, (size + 7) // 8, TOKENS, COLUMNS)
        change = tl.where(keep, change, 0.0)
    tl.store(place, (before.to(tl.float32) + change).to(dx.dtype.element_ty), here)
