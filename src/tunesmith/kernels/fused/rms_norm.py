"""RMSNorm, forward and backward in one pass over memory each: ``y = (w + offset) · x · rstd``, ``rstd = 1/sqrt(mean(x²) + ε)``.

Zhang and Sennrich 2019 (arXiv 1910.07467); Gemma stores its weights less one, hence the offset. The weight is frozen.
With ``n = x · rstd`` and ``g = dy · (w + offset)``:  ``dx = rstd (g − n · mean(g · n))``.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tunesmith.kernels.fused.kernel import kernel


def rms_norm_forward(
    x: Tensor, weight: Tensor, eps: float, offset: float, added: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """y ``[T, H]`` of x's type, rstd ``[T]`` fp32, and what was normalised: x, or ``x + added`` of x's type.

    Args:
        x, added: ``[T, H]``, any stride between rows. weight: ``[H]``, of any floating type. offset: added to the weight.
    """
    assert x.stride(1) == 1
    assert added is None or (added.shape == x.shape and added.stride(1) == 1)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = x if added is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rstd = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    other = x if added is None else added
    grid, rows, width, warps = _launch(x)
    _forward[grid](
        x, other, weight, total, y, rstd, *x.shape, x.stride(0), other.stride(0), float(eps), float(offset),
        ADD=added is not None, ROWS=rows, WIDTH=width, num_warps=warps, enable_fp_fusion=True,
    )  # fmt: skip
    return y, rstd, total


def rms_norm_backward(dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, offset: float, beside: Tensor | None = None) -> Tensor:
    """dx ``[T, H]`` of x's type from dy ``[T, H]`` and what forward was given and gave; ``beside``, the gradient ``[T, H]`` of
    x where it goes past the norm, is added. Any stride between rows."""
    assert x.stride(1) == dy.stride(1) == 1
    assert beside is None or (beside.shape == x.shape and beside.stride(1) == 1)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    other = dy if beside is None else beside
    grid, rows, width, warps = _launch(x)
    _backward[grid](
        dy, other, x, weight, rstd, dx, *x.shape, dy.stride(0), other.stride(0), x.stride(0), float(offset),
        ADD=beside is not None, ROWS=rows, WIDTH=width, num_warps=warps, enable_fp_fusion=True,
    )  # fmt: skip
    return dx


def rms_norm_forward_plain(x: Tensor, weight: Tensor, eps: float, offset: float) -> tuple[Tensor, Tensor]:
    """The plain twin of `rms_norm_forward`."""
    wide = x.float()
    rstd = torch.rsqrt(wide.square().mean(1) + eps)
    return (wide * rstd[:, None] * (weight.float() + offset)).to(x.dtype), rstd


def rms_norm_backward_plain(dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, offset: float) -> Tensor:
    """The plain twin of `rms_norm_backward`."""
    normed = x.float() * rstd[:, None]
    scaled = dy.float() * (weight.float() + offset)
    return ((scaled - normed * (scaled * normed).mean(1, keepdim=True)) * rstd[:, None]).to(x.dtype)


def _launch(x: Tensor) -> tuple[tuple[int], int, int, int]:
    """Grid, rows a program, padded width, warps. A row stays in registers; short rows (head norms) share a program."""
    width = triton.next_power_of_2(x.shape[1])
    rows = max(1, 1024 // width)
    return (triton.cdiv(x.shape[0], rows),), rows, width, min(16, max(4, width // 512))


@kernel(do_not_specialize=["rows"])
def _forward(
    x, added, weight, total, y, rstd, rows, size, x_stride, added_stride, eps, offset,
    ADD: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    here = (row < rows)[:, None] & (column < size)[None, :]
    values = tl.load(x + row[:, None] * x_stride + column[None, :], here, 0.0)
    if ADD:
        more = tl.load(added + row[:, None] * added_stride + column[None, :], here, 0.0)
        values = (values.to(tl.float32) + more.to(tl.float32)).to(y.dtype.element_ty)
        tl.store(total + row[:, None] * size + column[None, :], values, here)
    values = values.to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, axis=1) / size + eps)
    tl.store(rstd + row, scale, row < rows)
    factor = tl.load(weight + column, column < size, 0.0).to(tl.float32) + offset
    normed = values * scale[:, None] * factor[None, :]
    tl.store(y + row[:, None] * size + column[None, :], normed.to(y.dtype.element_ty), here)


@kernel(do_not_specialize=["rows"])
def _backward(
    dy, beside, x, weight, rstd, dx, rows, size, dy_stride, beside_stride, x_stride, offset,
    ADD: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    here = (row < rows)[:, None] & (column < size)[None, :]
    scale = tl.load(rstd + row, row < rows, 0.0)[:, None]
    factor = tl.load(weight + column, column < size, 0.0).to(tl.float32) + offset
    normed = tl.load(x + row[:, None] * x_stride + column[None, :], here, 0.0).to(tl.float32) * scale
    scaled = tl.load(dy + row[:, None] * dy_stride + column[None, :], here, 0.0).to(tl.float32) * factor[None, :]
    inner = tl.sum(scaled * normed, axis=1) / size
    gradient = (scaled - normed * inner[:, None]) * scale
    if ADD:
        gradient += tl.load(beside + row[:, None] * beside_stride + column[None, :], here, 0.0).to(tl.float32)
    tl.store(dx + row[:, None] * size + column[None, :], gradient.to(dx.dtype.element_ty), here)
