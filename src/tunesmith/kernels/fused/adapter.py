"""The thin matrix products of an adapter with dropout inside them, so that no dropped copy of x is ever stored.

Hu et al. 2021 (arXiv 2106.09685). With the keep-mask M of `dropout` (drawn again in each, never scaled) and t the rank
side's gradient:  ``s drop(x) Aᵀ``,  ``dA = tᵀ drop(x)``  and  ``drop(t A)``.

Legend: T tokens, K features, R the sum of ranks (at most 128; padded inside to a power of two of 16 or more). Products
are of x's type with fp32 sums; A may be wider (fp32 masters) and is rounded to x's type as it is read.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tunesmith.kernels.fused.dropout import keep_tile, threshold

PROGRAMS = 256
"""Programs that keep a large GPU busy: a product with fewer tiles than this splits its long sum among several."""


def project(x: Tensor, A: Tensor, scale: float = 1.0, p: float = 0.0, seed: Tensor | None = None, salt: int = 0) -> Tensor:
    """``scale · drop(x) Aᵀ``, ``[T, R]`` of x's type.

    Args:
        x: ``[T, K]``, any stride between rows. A: ``[R, K]``, contiguous.
        p, seed, salt: as in `dropout.drop`; p = 0 draws no mask and needs no seed.
    """
    (tokens, size), rank = x.shape, A.shape[0]
    ranks = _check(x, A, rank)
    assert A.is_contiguous()
    block, step = 64, 64 if x.element_size() == 2 else 32
    tiles = triton.cdiv(tokens, block)
    steps, splits = _split(size, tiles, step, least=256)
    sums = torch.empty(splits, tokens, rank, dtype=torch.float32, device=x.device)
    _project[(tiles, splits)](
        x, A, sums, tokens, size, rank, x.stride(0), steps, x if seed is None else seed, salt, threshold(p),
        DROP=p > 0, WIDEN=_widen(x), TOKENS=block, COLUMNS=step, RANKS=ranks,
        num_warps=_warps(x), num_stages=3, enable_fp_fusion=True,
    )  # fmt: skip
    return _reduce(sums, scale, x.dtype)


def lora_grad_A(t: Tensor, x: Tensor, p: float = 0.0, seed: Tensor | None = None, salt: int = 0) -> Tensor:  # noqa: N802
    """``tᵀ drop(x)``, ``[R, K]`` fp32, from t ``[T, R]`` of x's type (any stride between rows) and the rest as in `project`."""
    (tokens, size), rank = x.shape, t.shape[1]
    ranks = _check(x, t, rank)
    assert t.dtype == x.dtype
    block, step = 64, 64 if x.element_size() == 2 else 32
    tiles = triton.cdiv(size, block)
    steps, splits = _split(tokens, tiles, step, least=256)
    sums = torch.empty(splits, rank, size, dtype=torch.float32, device=x.device)
    _gradient[(tiles, splits)](
        t, x, sums, tokens, size, rank, t.stride(0), x.stride(0), steps, x if seed is None else seed, salt, threshold(p),
        DROP=p > 0, WIDEN=_widen(x), TOKENS=step, COLUMNS=block, RANKS=ranks,
        num_warps=_warps(x), num_stages=3, enable_fp_fusion=True,
    )  # fmt: skip
    return sums[0] if splits == 1 else _reduce(sums, 1.0, torch.float32)


def spread(t: Tensor, A: Tensor, p: float = 0.0, seed: Tensor | None = None, salt: int = 0) -> Tensor:
    """``drop(t A)``, ``[T, K]`` of t's type, from t ``[T, R]`` (any stride between rows) and A ``[R, K]``."""
    (tokens, rank), size = t.shape, A.shape[1]
    out = torch.empty(tokens, size, dtype=t.dtype, device=t.device)
    ranks = _check(out, A, rank)
    assert A.is_contiguous()
    assert t.stride(1) == 1
    rows, columns = (64, 64) if t.element_size() == 2 else (32, 32)
    _spread[(triton.cdiv(tokens, rows), triton.cdiv(size, columns))](
        out, t, A, tokens, size, rank, t.stride(0), t if seed is None else seed, salt, threshold(p),
        DROP=p > 0, WIDEN=_widen(t), TOKENS=rows, COLUMNS=columns, RANKS=ranks,
        num_warps=_warps(t), enable_fp_fusion=True,
    )  # fmt: skip
    return out


def project_plain(x: Tensor, A: Tensor, keep: Tensor, scale: float = 1.0) -> Tensor:
    """The plain twin of `project`; keep: the mask, bool ``[T, K]``."""
    return (scale * ((x * keep).float() @ A.to(x.dtype).float().T)).to(x.dtype)


def lora_grad_A_plain(t: Tensor, x: Tensor, keep: Tensor) -> Tensor:  # noqa: N802
    """The plain twin of `lora_grad_A`."""
    return t.float().T @ (x * keep).float()


def spread_plain(t: Tensor, A: Tensor, keep: Tensor) -> Tensor:
    """The plain twin of `spread`."""
    return (keep * (t.float() @ A.to(t.dtype).float())).to(t.dtype)


def _reduce(sums: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """``scale`` times the sum over the first dimension of ``[S, *, *]``, always in the same order."""
    out = torch.empty(sums.shape[1:], dtype=dtype, device=sums.device)
    _reduced[(triton.cdiv(out.numel(), 1024),)](
        sums, out, scale, out.numel(), sums.shape[0], BLOCK=1024, num_warps=4, enable_fp_fusion=True
    )
    return out


def _check(x: Tensor, thin: Tensor, rank: int) -> int:
    """The padded rank, R's power of two."""
    assert rank <= 128
    assert x.stride(1) == thin.stride(1) == 1
    return max(16, triton.next_power_of_2(rank))


def _split(length: int, tiles: int, step: int, least: int) -> tuple[int, int]:
    """Steps of a sum over ``length`` that one program takes, and how many programs then share the sum."""
    splits = max(1, min(PROGRAMS // max(1, tiles), length // least))
    steps = max(1, triton.cdiv(length, splits * step))
    return steps, max(1, triton.cdiv(length, steps * step))


def _warps(x: Tensor) -> int:
    """fp32 is multiplied outside the matrix units and needs twice the registers, hence twice the threads."""
    return 4 if x.element_size() == 2 else 8


def _widen(x: Tensor) -> bool:
    """Triton's interpreter, the only way these run on a CPU, multiplies the bits of bf16 as if they were integers."""
    return x.device.type == "cpu"


@triton.jit(do_not_specialize=["tokens", "steps", "salt", "threshold"])
def _project(
    x, A, sums, tokens, size, rank, x_stride, steps, seed, salt, threshold,
    DROP: tl.constexpr, WIDEN: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr, RANKS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    first = tl.program_id(1) * steps
    r = tl.arange(0, RANKS)
    line = row.to(tl.int64)[:, None]
    if DROP:
        key = tl.load(seed)
    total = tl.zeros([TOKENS, RANKS], dtype=tl.float32)
    for step in range(first, tl.minimum(first + steps, tl.cdiv(size, COLUMNS))):
        column = step * COLUMNS + tl.arange(0, COLUMNS)
        values = tl.load(x + line * x_stride + column[None, :], (row < tokens)[:, None] & (column < size)[None, :], 0.0)
        if DROP:
            group = step * (COLUMNS // 8) + tl.arange(0, COLUMNS // 8)
            keep = keep_tile(key, salt, threshold, row, group, (size + 7) // 8, TOKENS, COLUMNS)
            values = tl.where(keep, values, 0.0)
        factor = tl.load(A + r[:, None] * size + column[None, :], (r < rank)[:, None] & (column < size)[None, :], 0.0)
        factor = tl.trans(factor.to(values.dtype))
        if WIDEN:
            values, factor = values.to(tl.float32), factor.to(tl.float32)
        total = tl.dot(values, factor, total, input_precision="ieee")
    out = sums + (tl.program_id(1).to(tl.int64) * tokens + line) * rank + r[None, :]
    tl.store(out, total.to(sums.dtype.element_ty), (row < tokens)[:, None] & (r < rank)[None, :])


@triton.jit(do_not_specialize=["tokens", "steps", "salt", "threshold"])
def _gradient(
    t, x, sums, tokens, size, rank, t_stride, x_stride, steps, seed, salt, threshold,
    DROP: tl.constexpr, WIDEN: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr, RANKS: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    first = tl.program_id(1) * steps
    r = tl.arange(0, RANKS)
    if DROP:
        key = tl.load(seed)
        group = tl.program_id(0) * (COLUMNS // 8) + tl.arange(0, COLUMNS // 8)
    total = tl.zeros([RANKS, COLUMNS], dtype=tl.float32)
    for step in range(first, tl.minimum(first + steps, tl.cdiv(tokens, TOKENS))):
        row = step * TOKENS + tl.arange(0, TOKENS)
        line = row.to(tl.int64)
        values = tl.load(x + line[:, None] * x_stride + column[None, :], (row < tokens)[:, None] & (column < size)[None, :], 0.0)
        if DROP:
            keep = keep_tile(key, salt, threshold, row, group, (size + 7) // 8, TOKENS, COLUMNS)
            values = tl.where(keep, values, 0.0)
        slope = tl.load(t + line[None, :] * t_stride + r[:, None], (row < tokens)[None, :] & (r < rank)[:, None], 0.0)
        if WIDEN:
            values, slope = values.to(tl.float32), slope.to(tl.float32)
        total = tl.dot(slope, values, total, input_precision="ieee")
    out = sums + (tl.program_id(1) * rank + r[:, None]).to(tl.int64) * size + column[None, :]
    tl.store(out, total, (r < rank)[:, None] & (column < size)[None, :])


@triton.jit(do_not_specialize=["tokens", "salt", "threshold"])
def _spread(
    out, t, A, tokens, size, rank, t_stride, seed, salt, threshold,
    DROP: tl.constexpr, WIDEN: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr, RANKS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    r = tl.arange(0, RANKS)
    line = row.to(tl.int64)[:, None]
    slope = tl.load(t + line * t_stride + r[None, :], (row < tokens)[:, None] & (r < rank)[None, :], 0.0)
    factor = tl.load(A + r[:, None] * size + column[None, :], (r < rank)[:, None] & (column < size)[None, :], 0.0)
    factor = factor.to(slope.dtype)
    if WIDEN:
        slope, factor = slope.to(tl.float32), factor.to(tl.float32)
    change = tl.dot(slope, factor, input_precision="ieee")
    if DROP:
        group = tl.program_id(1) * (COLUMNS // 8) + tl.arange(0, COLUMNS // 8)
        keep = keep_tile(tl.load(seed), salt, threshold, row, group, (size + 7) // 8, TOKENS, COLUMNS)
        change = tl.where(keep, change, 0.0)
    here = (row < tokens)[:, None] & (column < size)[None, :]
    tl.store(out + line * size + column[None, :], change.to(out.dtype.element_ty), here)


@triton.jit(do_not_specialize=["count", "splits", "scale"])
def _reduced(sums, out, scale, count, splits, BLOCK: tl.constexpr):
    slot = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = slot < count
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for split in range(splits):
        total += tl.load(sums + split * count + slot, here, 0.0)
    tl.store(out + slot, (scale * total).to(out.dtype.element_ty), here)
