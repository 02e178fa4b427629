"""The fused kernels of a GPU as one autograd function (what they do: `fused.attention`)."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tunesmith.kernels.columns import empty_columns
from tunesmith.kernels.segments import Segments

MAX_ROTATED_INSIDE = 128
"""Tokens of the longest segment up to which a GPU rotates queries and keys as it reads them: beyond, each is read often."""


def rotates_inside(query: Tensor, cos: Tensor, segments: Segments) -> bool:
    """Whether the fused kernels should rotate queries and keys themselves, with cos ``[T, R]``."""
    lengths, _ = segments.like or segments.documents  # as the tile: what a captured step does must not depend on which pack came
    if not is_fused(query) or cos.shape[-1] != query.shape[-1] or max(lengths) > MAX_ROTATED_INSIDE:
        return False
    from tunesmith.kernels.fused.attention_tiles import can_rotate

    return can_rotate(segments.layout(query.shape[-1], query.dtype).block, query.shape[-1], query.dtype, query.device)


def is_fused(query: Tensor, value: Tensor | None = None) -> bool:
    """Whether the fused kernels take heads like these, ``[T, H, D]``: they need no padding, and no word about the lengths of
    documents but tables on the device."""
    size = query.shape[-1]
    if not query.is_cuda or (value is not None and value.shape[-1] != size):
        return False
    from tunesmith.kernels.fused.attention_tiles import largest_block

    return size <= 256 and size % 2 == 0 and query.dtype != torch.float64 and largest_block(size, query.dtype, query.device) > 0


class FusedAttention(torch.autograd.Function):
    """The fused kernels of a GPU. Gradients leave as columns of one matrix, as those of `rotary` do."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cos: Tensor | None,
        sin: Tensor | None,
        segments: Segments,
        scaling: float,
        sliding_window: int | None,
        softcap: float | None,
    ) -> Tensor:
        from tunesmith.kernels.fused.attention import segment_attention_forward

        layout = segments.layout(query.shape[-1], query.dtype)
        query, key, value = (_heads_side_by_side(x) for x in (query, key, value))
        out, lse = segment_attention_forward(query, key, value, layout, scaling, sliding_window, softcap, cos, sin)
        ctx.save_for_backward(query, key, value, cos, sin, out, lse)
        ctx.layout, ctx.settings = layout, (scaling, sliding_window, softcap)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        from tunesmith.kernels.fused.attention_backward import segment_attention_backward

        query, key, value, cos, sin, out, lse = ctx.saved_tensors
        dq, dk, dv = empty_columns((query, key, value))
        scaling, sliding_window, softcap = ctx.settings
        segment_attention_backward(
            _heads_side_by_side(grad), query, key, value, out, lse, ctx.layout, scaling, sliding_window, softcap,
            dq, dk, dv, cos, sin,
        )  # fmt: skip
        return dq, dk, dv, None, None, None, None, None, None


def _heads_side_by_side(x: Tensor) -> Tensor:
    """``[T, H, D]`` with a token's heads one after the other, as the fused kernels read them."""
    return x if x.stride(2) == 1 and (x.stride(1) == x.shape[2] or x.shape[1] == 1) else x.contiguous()
