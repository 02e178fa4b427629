"""Attention over the segments of one flat token array: no padding, no mask in memory, scores never leave the chip.

A segment attends causally to itself and, if it continues a prefix (a segment other segments continue too), to all of that.
Keys are read tile by tile with a running maximum and a running sum of exponentials below it; of the scores only their
logsumexp is kept, from which backward computes them again (Dao et al. 2022, arXiv 2205.14135; Dao 2023, arXiv 2307.08691).
Every sum has one order, so that a result is the same each time.

Legend: T tokens, H heads, H_kv key heads (H a multiple of it), D head size (padded inside to a power of two).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tunesmith.kernels.fused.attention_layout import Layout, largest_block
from tunesmith.kernels.fused.kernel import kernel

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


def segment_attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`kernels.attention.segment_attention`, and what backward needs: out ``[T, H, D]`` and logsumexp ``[H, T]`` fp32.

    Args:
        q: ``[T, H, D]``; k, v: ``[T, H_kv, D]``; any stride between tokens, a token's heads side by side.
        sliding_window: a token sees at most this many tokens, itself included. softcap: c in ``c · tanh(scores / c)``.
        cos, sin: ``[T, D]``, any stride between rows, to rotate q and k as they are read (`rope`, whose two halves of a
            row must agree: the first is read). A tile is rotated each time it is read: for segments of few blocks, and
            where `attention_layout.can_rotate`.
    """
    check(layout, q, k, v)
    tokens, heads, _ = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(heads, tokens, dtype=torch.float32, device=q.device)
    _forward[(heads, layout.queries.shape[0])](
        q, k, v, out, lse, layout.queries, tokens, heads // k.shape[1],
        **common_arguments(q, layout, scaling, sliding_window, softcap, cos, sin),
        q_stride=q.stride(0), k_stride=k.stride(0), v_stride=v.stride(0),
    )  # fmt: skip
    return out, lse


def check(layout: Layout, *heads: Tensor) -> None:
    """Of each ``[T, *, D]``: that it is of the kind the kernels read."""
    tokens, _, size = heads[0].shape
    assert layout.positions.shape == (tokens,)
    assert layout.block <= largest_block(size, heads[0].dtype, heads[0].device)
    assert size % 2 == 0
    for x in heads:
        assert x.dtype == heads[0].dtype
        assert x.shape[::2] == (tokens, size)
        assert x.stride(2) == 1
        assert x.stride(1) == size or x.shape[1] == 1


# Strides are compile-time constants (they are a model's): a tile's addresses then take one register instead of sixteen.
def common_arguments(
    q: Tensor,
    layout: Layout,
    scaling: float,
    sliding_window: int | None,
    softcap: float | None,
    cos: Tensor | None,
    sin: Tensor | None,
) -> dict[str, Any]:
    """The arguments that all kernels with scores have."""
    if cos is not None and sin is not None:
        assert cos.shape == sin.shape == (q.shape[0], q.shape[2])
        assert cos.stride() == sin.stride()
        assert cos.stride(0) > 0
        assert cos.stride(1) == 1
    return {
        "cos": q if cos is None else cos,
        "sin": q if sin is None else sin,
        "scale": scaling / softcap if softcap else scaling * LOG2E.value,  # scores have base 2: exp2 is one instruction
        "cap": softcap * LOG2E.value if softcap else 0.0,
        "window": sliding_window or 0,
        "CAPPED": bool(softcap),
        "WINDOWED": sliding_window is not None and sliding_window < q.shape[0],
        "TURN": 0 if cos is None else cos.stride(0),
        "WIDEN": q.device.type == "cpu",  # Triton's interpreter multiplies the bits of bf16 as if they were integers
        "D": q.shape[2],
        "SIZE": max(16, triton.next_power_of_2(q.shape[2])),
        "HALF": max(16, triton.next_power_of_2(q.shape[2] // 2)),
        "BLOCK": layout.block,
        "num_warps": 4,
        "num_stages": 2 if cos is None else 1,  # tiles that are rotated take registers, and loops over them are short
        "enable_fp_fusion": True,
    }


@triton.jit
def load_tile(
    base, first, end, stride: tl.constexpr, WIDEN: tl.constexpr, D: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr
):
    """Rows ``[BLOCK, SIZE]`` of a head from token ``first`` on; zeros from token ``end`` and from column D on."""
    lane, column = tl.arange(0, BLOCK)[:, None], tl.arange(0, SIZE)[None, :]
    base += first.to(tl.int64) * stride
    tile = tl.load(base + lane * stride + column, (first + lane < end) & (column < D), 0.0)
    return tile.to(tl.float32) if WIDEN else tile


@triton.jit
def store_tile(tile, base, first, end, stride: tl.constexpr, D: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    lane, column = tl.arange(0, BLOCK)[:, None], tl.arange(0, SIZE)[None, :]
    base += first.to(tl.int64) * stride
    tl.store(base + lane * stride + column, tile.to(base.dtype.element_ty), (first + lane < end) & (column < D))


@triton.jit
def load_pair(
    base, first, end, stride: tl.constexpr, cos, sin, TURN: tl.constexpr,
    WIDEN: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The two halves ``[BLOCK, HALF]`` of a tile as in `load_tile`, rotated to their positions."""
    one = load_half(base, first, end, stride, D, HALF, BLOCK)
    two = load_half(base + D // 2, first, end, stride, D, HALF, BLOCK)
    if TURN > 0:
        c = load_half(cos, first, end, TURN, D, HALF, BLOCK).to(tl.float32)
        s = load_half(sin, first, end, TURN, D, HALF, BLOCK).to(tl.float32)
        turned_one = one.to(tl.float32) * c - two.to(tl.float32) * s
        turned_two = two.to(tl.float32) * c + one.to(tl.float32) * s
        one, two = turned_one.to(one.dtype), turned_two.to(two.dtype)
    if WIDEN:
        one, two = one.to(tl.float32), two.to(tl.float32)
    return one, two


@triton.jit
def load_half(base, first, end, stride: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr):
    lane, column = tl.arange(0, BLOCK)[:, None], tl.arange(0, HALF)[None, :]
    base += first.to(tl.int64) * stride
    return tl.load(base + lane * stride + column, (first + lane < end) & (column < D // 2), 0.0)


@triton.jit
def store_pair(
    one, two, base, first, end, stride: tl.constexpr, cos, sin, TURN: tl.constexpr,
    D: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Halves ``[BLOCK, HALF]`` of a gradient, rotated back."""
    lane, column = tl.arange(0, BLOCK)[:, None], tl.arange(0, HALF)[None, :]
    if TURN > 0:
        c = load_half(cos, first, end, TURN, D, HALF, BLOCK).to(tl.float32)
        s = load_half(sin, first, end, TURN, D, HALF, BLOCK).to(tl.float32)
        one, two = one * c + two * s, two * c - one * s
    base += first.to(tl.int64) * stride
    here = (first + lane < end) & (column < D // 2)
    tl.store(base + lane * stride + column, one.to(base.dtype.element_ty), here)
    tl.store(base + lane * stride + column + D // 2, two.to(base.dtype.element_ty), here)


@triton.jit
def scores(a_one, a_two, b_one, b_two, scale, cap, CAPPED: tl.constexpr):
    """Scores of rows of a with rows of b, both in halves, in base 2."""
    s = tl.dot(a_one, tl.trans(b_one), input_precision="ieee")
    s = tl.dot(a_two, tl.trans(b_two), s, input_precision="ieee") * scale
    if CAPPED:
        small = tl.exp2(tl.abs(s) * LOG2E * -2.0)  # at most 1, so that nothing overflows
        tanh = (1.0 - small) / (1.0 + small)
        s = cap * tl.where(s < 0.0, -tanh, tanh)
    return s


@triton.jit
def query_row(queries, window, WINDOWED: tl.constexpr, BLOCK: tl.constexpr):
    """A row of the table of queries: first and end, then what of its segment and of its prefix is in reach: start of its own
    keys; start, end and tiles of the prefix's; how much further than flat tokens say a prefix's keys are away."""
    first, end = tl.load(queries), tl.load(queries + 1)
    own, prefix, prefix_end = tl.load(queries + 2), tl.load(queries + 3), tl.load(queries + 4)
    away = prefix_end - own
    if WINDOWED:
        own = tl.maximum(own, first - window + 1)
        prefix = tl.minimum(tl.maximum(prefix, first + away - window + 1), prefix_end)
    return first, end, own, prefix, prefix_end, tl.cdiv(prefix_end - prefix, BLOCK), away


@triton.jit
def key_tile(tile, first, end, own, prefix, prefix_end, prefix_tiles, away, window, WINDOWED: tl.constexpr, BLOCK: tl.constexpr):
    """A tile of the keys of a `query_row`, the prefix's first: where it begins and ends, and which query sees which key."""
    inherited = tile < prefix_tiles
    place = tl.where(inherited, prefix + tile * BLOCK, own + (tile - prefix_tiles) * BLOCK)
    stop = tl.where(inherited, prefix_end, end)
    key = place + tl.arange(0, BLOCK)[None, :]
    distance = first + tl.where(inherited, away, 0) + tl.arange(0, BLOCK)[:, None] - key
    seen = (key < stop) & (distance >= 0)
    if WINDOWED:
        seen = seen & (distance < window)
    return place, stop, seen


@kernel(do_not_specialize=["queries", "tokens", "window"])
def _forward(
    q, k, v, out, lse, queries, tokens, group, cos, sin, scale, cap, window,
    q_stride: tl.constexpr, k_stride: tl.constexpr, v_stride: tl.constexpr,
    CAPPED: tl.constexpr, WINDOWED: tl.constexpr, TURN: tl.constexpr, WIDEN: tl.constexpr,
    D: tl.constexpr, SIZE: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One head of one block of queries."""
    head, heads = tl.program_id(0), tl.num_programs(0)
    queries += tl.program_id(1) * 6
    first, end, own, prefix, prefix_end, prefix_tiles, away = query_row(queries, window, WINDOWED, BLOCK)
    if first >= end:
        return
    k += head // group * D
    v += head // group * D
    q_one, q_two = load_pair(q + head * D, first, end, q_stride, cos, sin, TURN, WIDEN, D, HALF, BLOCK)
    highest = tl.full([BLOCK], -3.4e38, dtype=tl.float32)  # finite, so that a tile may be out of a query's sight
    total = tl.zeros([BLOCK], dtype=tl.float32)
    mixed = tl.zeros([BLOCK, SIZE], dtype=tl.float32)
    for tile in range(prefix_tiles + tl.cdiv(end - own, BLOCK)):
        place, stop, seen = key_tile(tile, first, end, own, prefix, prefix_end, prefix_tiles, away, window, WINDOWED, BLOCK)
        k_one, k_two = load_pair(k, place, stop, k_stride, cos, sin, TURN, WIDEN, D, HALF, BLOCK)
        value = load_tile(v, place, stop, v_stride, WIDEN, D, SIZE, BLOCK)
        s = tl.where(seen, scores(q_one, q_two, k_one, k_two, scale, cap, CAPPED), float("-inf"))
        higher = tl.maximum(highest, tl.max(s, axis=1))
        weight = tl.exp2(s - higher[:, None])
        fade = tl.exp2(highest - higher)
        total = total * fade + tl.sum(weight, axis=1)
        mixed = tl.dot(weight.to(value.dtype), value, mixed * fade[:, None], input_precision="ieee")
        highest = higher
    lane = tl.arange(0, BLOCK)
    here = first + lane < end
    total = tl.where(here, total, 1.0)
    store_tile(mixed / total[:, None], out + head * D, first, end, heads * D, D, SIZE, BLOCK)
    tl.store(lse + head.to(tl.int64) * tokens + first + lane, (highest + tl.log2(total)) / LOG2E, here)
