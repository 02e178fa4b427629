"""Dequantise bitsandbytes' NF4 in one kernel: ``Ŵ = code[nibble] · absmax[block]``, the scales themselves unpacked on the way.

NF4 and double quantisation: Dettmers et al. 2023 (arXiv 2305.14314). With double quantisation a block's scale is
``code₂[q] · absmax₂[block / 256] + offset``, for which bitsandbytes runs two kernels more and stores the scales between
them. Order of operations and roundings are those of bitsandbytes' CUDA kernels, so the result is equal to the bit.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tunesmith.kernels.factors import Behind
from tunesmith.kernels.fused.kernel import kernel

BYTES = 2048
"""Packed bytes (two values each) a program unpacks."""
ROWS, COLUMNS = 128, 16
"""Of what stands behind a weight: rows of a program, and columns that it writes at once."""


def dequantise(
    weight: Tensor, quant_state: Any, dtype: torch.dtype, out: Tensor | None = None, rows: slice | None = None,
    behind: Behind | None = None,
) -> Tensor:  # fmt: skip
    """The weight ``[N, K]`` a bitsandbytes 4-bit parameter stands for, or some of its rows, and what stands behind them, written in
    the same launch.

    Args:
        weight: packed, two values a byte, the first in the high half; any shape and storage type, contiguous.
        quant_state: bitsandbytes' ``QuantState`` of type nf4, its tensors (offset too) on the weight's device.
        dtype: of the result. out: ``[N, K]`` of that type to write into, any stride between rows; with columns behind it, those
            too. rows: only these, which must begin at a quantisation block. behind: what stands behind the whole weight.
    """
    assert quant_state.quant_type == "nf4"
    size = quant_state.shape[1]
    first, last = (0, quant_state.shape[0]) if rows is None else (rows.start, rows.stop)
    assert first * size % quant_state.blocksize == 0
    columns = behind.columns if behind is not None else 0
    assert columns % COLUMNS == 0
    shape: Sequence[int] = (last - first, size + columns)
    if out is None:
        out = torch.empty(shape, dtype=dtype, device=weight.device)
    assert out.shape == torch.Size(shape)
    assert out.dtype == dtype
    assert out.stride(1) == 1
    packed = weight.detach().view(torch.uint8).view(-1)[first * size // 2 :]
    absmax, inner = quant_state.absmax, quant_state.state2
    scales = (inner.code, inner.absmax, quant_state.offset) if inner is not None else (absmax, absmax, absmax)
    half = quant_state.blocksize // 2
    blocks = max(1, BYTES // half)
    pairs = shape[0] * size // 2
    programs = triton.cdiv(pairs, blocks * half)
    factor = out if behind is None else behind.factor[first:last]
    rank, column = (0, 0) if behind is None else (factor.shape[1], behind.first)
    assert factor.dtype == dtype
    assert factor.stride(1) == 1
    _dequantise[(programs + (triton.cdiv(shape[0], ROWS) if columns else 0),)](
        packed, quant_state.code, absmax, *scales, out, pairs, inner.blocksize if inner is not None else 1,
        first * size // quant_state.blocksize, size, out.stride(0),
        factor, factor.stride(0), rank, column, columns, shape[0], programs,
        NESTED=inner is not None, BLOCKS=blocks, HALF=half, WHOLE=size % quant_state.blocksize == 0, ROWS=ROWS, COLUMNS=COLUMNS,
        num_warps=4, enable_fp_fusion=False,  # bitsandbytes rounds the product before it adds the offset
    )  # fmt: skip
    return out


def dequantise_plain(weight: Tensor, quant_state: Any, dtype: torch.dtype) -> Tensor:
    """The plain twin of `dequantise`."""
    absmax, inner = quant_state.absmax, quant_state.state2
    if inner is not None:
        outer = inner.absmax.repeat_interleave(inner.blocksize)[: absmax.numel()]
        absmax = inner.code[absmax.long()] * outer + quant_state.offset
    packed = weight.detach().view(torch.uint8).flatten().long()
    values = quant_state.code[torch.stack([packed >> 4, packed & 15], dim=1).flatten()]
    scale = absmax.repeat_interleave(quant_state.blocksize)[: values.numel()]
    return (values * scale).to(dtype).view(quant_state.shape)


@kernel(do_not_specialize=["pairs", "first", "factor", "factor_stride", "rank", "column", "columns", "rows", "programs"])
def _dequantise(
    packed, code, absmax, inner_code, inner_absmax, offset, out, pairs, inner_size, first, size, stride,
    factor, factor_stride, rank, column, columns, rows, programs,
    NESTED: tl.constexpr, BLOCKS: tl.constexpr, HALF: tl.constexpr, WHOLE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """So many programs unpack; those after them write what stands behind."""
    if tl.program_id(0) < programs:
        _unpack(packed, code, absmax, inner_code, inner_absmax, offset, out, pairs, inner_size, first, size, stride,
                NESTED, BLOCKS, HALF, WHOLE)  # fmt: skip
    else:
        begin = (tl.program_id(0) - programs) * ROWS
        _write_behind(out + size, stride, factor, factor_stride, rank, column, columns, begin, rows, ROWS, COLUMNS)


@triton.jit
def _write_behind(
    out, stride, factor, factor_stride, rank, column, columns, begin, rows, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """ROWS rows: zeros, but for the factor's columns from ``column`` on."""
    row = (begin + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    for start in range(0, columns, COLUMNS):
        here = start + tl.arange(0, COLUMNS)[None, :]
        inside = (here >= column) & (here < column + rank) & (row < rows)
        values = tl.load(factor + row * factor_stride + here - column, inside, 0.0)
        tl.store(out + row * stride + here, values, row < rows)


@triton.jit
def _unpack(
    packed, code, absmax, inner_code, inner_absmax, offset, out, pairs, inner_size, first, size, stride,
    NESTED: tl.constexpr, BLOCKS: tl.constexpr, HALF: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """A tile of BLOCKS quantisation blocks, HALF bytes each: one scale a row of it. WHOLE: a row of the weight has whole blocks, so
    that one division serves all of a block."""
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    here = block * HALF < pairs
    if NESTED:
        scale = tl.load(inner_code + tl.load(absmax + first + block, here, 0).to(tl.int32))
        scale = scale * tl.load(inner_absmax + (first + block) // inner_size, here, 0.0)
        scale = (scale + tl.load(offset))[:, None]
    else:
        scale = tl.load(absmax + first + block, here, 0.0)[:, None]
    pair = block[:, None] * HALF + tl.arange(0, HALF)[None, :]
    byte = tl.load(packed + pair, pair < pairs, 0).to(tl.int32)
    high = tl.load(code + (byte >> 4)) * scale
    low = tl.load(code + (byte & 15)) * scale
    values = tl.reshape(tl.join(high, low), [BLOCKS, 2 * HALF])
    slot = block[:, None] * (2 * HALF) + tl.arange(0, 2 * HALF)[None, :]
    row = (block * (2 * HALF) // size)[:, None] if WHOLE else slot // size
    tl.store(out + slot + row * (stride - size), values.to(out.dtype.element_ty), slot < 2 * pairs)
