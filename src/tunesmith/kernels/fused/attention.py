"""Attention over the segments of one flat token array: no padding, no mask in memory, scores never leave the chip.

A segment attends causally to itself and, if it continues a prefix (a segment other segments continue too), to all of that.
Keys are read tile by tile with a running maximum and a running sum of exponentials below it; of the scores only their
logsumexp is kept, from which backward computes them again (Dao et al. 2022, arXiv 2205.14135; Dao 2023, arXiv 2307.08691).
Every sum has one order, so that a result is the same each time.

Legend: T tokens, H heads, H_kv key heads (H a multiple of it), D head size. A head's columns are held in two parts, each padded
to a power of two: its halves if rows are rotated, else so that least is padded (`attention_tiles.parts_of`).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tunesmith.kernels.fused.attention_layout import Layout
from tunesmith.kernels.fused.attention_tiles import FORWARD, largest_block, parts_of
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
            where `attention_tiles.can_rotate`.
    """
    check(layout, q, k, v)
    tokens, heads, _ = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(heads, tokens, dtype=torch.float32, device=q.device)
    _forward[(heads, layout.queries.shape[0])](
        q, k, v, out, lse, layout.queries, tokens, heads // k.shape[1],
        **common_arguments(q, layout, scaling, sliding_window, softcap, cos, sin), **FORWARD.of(q, layout, cos is not None),
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
        "BLOCK": layout.block,
        "enable_fp_fusion": True,
    } | columns(q.shape[2], cos is not None)


def columns(size: int, turned: bool) -> dict[str, int]:
    """How a head's columns fall into two parts: where those of q and k are cut, those of v, and the parts' padded widths."""
    cut, one, two = parts_of(size, halves=turned)
    v_cut, v_one, v_two = parts_of(size)
    return {"D": size, "CUT": cut, "ONE": one, "TWO": two, "V_CUT": v_cut, "V_ONE": v_one, "V_TWO": v_two}


@triton.jit
def load_pair(
    base, first, end, stride: tl.constexpr, cos, sin, TURN: tl.constexpr, WIDEN: tl.constexpr,
    D: tl.constexpr, CUT: tl.constexpr, ONE: tl.constexpr, TWO: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """ROWS rows of a head from token ``first`` on, zeros from token ``end`` on, as ``[ROWS, ONE]`` and ``[ROWS, TWO]``: columns up
    to CUT and from it on, zeros where there are none. If they are halves, rotated to their positions by TURN > 0."""
    one = load_part(base, first, end, stride, CUT, ONE, ROWS)
    two = load_part(base + CUT, first, end, stride, D - CUT, TWO, ROWS)
    if TURN > 0:
        c = load_part(cos, first, end, TURN, CUT, ONE, ROWS).to(tl.float32)
        s = load_part(sin, first, end, TURN, CUT, ONE, ROWS).to(tl.float32)
        turned_one = one.to(tl.float32) * c - two.to(tl.float32) * s
        turned_two = two.to(tl.float32) * c + one.to(tl.float32) * s
        one, two = turned_one.to(one.dtype), turned_two.to(two.dtype)
    if WIDEN:
        one, two = one.to(tl.float32), two.to(tl.float32)
    return one, two


@triton.jit
def load_part(base, first, end, stride: tl.constexpr, COUNT: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    lane, column = tl.arange(0, ROWS)[:, None], tl.arange(0, WIDTH)[None, :]
    base += first.to(tl.int64) * stride
    return tl.load(base + lane * stride + column, (first + lane < end) & (column < COUNT), 0.0)


@triton.jit
def store_pair(
    one, two, base, first, end, stride: tl.constexpr, cos, sin, TURN: tl.constexpr,
    D: tl.constexpr, CUT: tl.constexpr, ONE: tl.constexpr, TWO: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """What `load_pair` reads, rotated back."""
    if TURN > 0:
        c = load_part(cos, first, end, TURN, CUT, ONE, ROWS).to(tl.float32)
        s = load_part(sin, first, end, TURN, CUT, ONE, ROWS).to(tl.float32)
        one, two = one * c + two * s, two * c - one * s
    store_part(one, base, first, end, stride, CUT, ONE, ROWS)
    store_part(two, base + CUT, first, end, stride, D - CUT, TWO, ROWS)


@triton.jit
def store_part(part, base, first, end, stride: tl.constexpr, COUNT: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    lane, column = tl.arange(0, ROWS)[:, None], tl.arange(0, WIDTH)[None, :]
    base += first.to(tl.int64) * stride
    tl.store(base + lane * stride + column, part.to(base.dtype.element_ty), (first + lane < end) & (column < COUNT))


@triton.jit
def products(a_one, a_two, b_one, b_two):
    """Of rows of a with rows of b, both in parts."""
    s = tl.dot(a_one, tl.trans(b_one), input_precision="ieee")
    return tl.dot(a_two, tl.trans(b_two), s, input_precision="ieee")


@triton.jit
def scores(a_one, a_two, b_one, b_two, scale, cap, CAPPED: tl.constexpr):
    """Scores of rows of a with rows of b, both in parts, in base 2."""
    s = products(a_one, a_two, b_one, b_two) * scale
    if CAPPED:
        small = tl.exp2(tl.abs(s) * LOG2E * -2.0)  # at most 1, so that nothing overflows
        tanh = (1.0 - small) / (1.0 + small)
        s = cap * tl.where(s < 0.0, -tanh, tanh)
    return s


@triton.jit
def rowsum(out_one, out_two, slope_one, slope_two):
    """rowsum(O ∘ dO), both in parts."""
    one = tl.sum(out_one.to(tl.float32) * slope_one.to(tl.float32), axis=1)
    return one + tl.sum(out_two.to(tl.float32) * slope_two.to(tl.float32), axis=1)


@triton.jit
def query_row(queries, window, WINDOWED: tl.constexpr, TILE: tl.constexpr):
    """A row of the table of queries: first and end, then what of its segment and of its prefix is in reach: start of its own
    keys; start, end and tiles of the prefix's; how much further than flat tokens say a prefix's keys are away."""
    first, end = tl.load(queries), tl.load(queries + 1)
    own, prefix, prefix_end = tl.load(queries + 2), tl.load(queries + 3), tl.load(queries + 4)
    away = prefix_end - own
    if WINDOWED:
        own = tl.maximum(own, first - window + 1)
        prefix = tl.minimum(tl.maximum(prefix, first + away - window + 1), prefix_end)
    return first, end, own, prefix, prefix_end, tl.cdiv(prefix_end - prefix, TILE), away


@triton.jit
def key_tile(tile, first, end, own, prefix, prefix_end, prefix_tiles, away, TILE: tl.constexpr):
    """A tile of the keys of a `query_row`, the prefix's first: where it begins and ends, and where, as its keys are counted, the
    first query stands."""
    inherited = tile < prefix_tiles
    place = tl.where(inherited, prefix + tile * TILE, own + (tile - prefix_tiles) * TILE)
    return place, tl.where(inherited, prefix_end, end), first + tl.where(inherited, away, 0)


@triton.jit
def in_sight(s, place, stop, origin, window, WINDOWED: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """Scores ``[BLOCK, TILE]`` of a `key_tile`, minus infinity where a query does not see a key. Most tiles of a long document
    are seen by all, and asking each score would take a quarter of their time."""
    all_seen = place + TILE <= tl.minimum(stop, origin + 1)
    if WINDOWED:
        all_seen = all_seen & (origin + BLOCK - place <= window)
    if not all_seen:
        key = place + tl.arange(0, TILE)[None, :]
        distance = origin + tl.arange(0, BLOCK)[:, None] - key
        seen = (key < stop) & (distance >= 0)
        if WINDOWED:
            seen = seen & (distance < window)
        s = tl.where(seen, s, float("-inf"))
    return s


@kernel(do_not_specialize=["queries", "tokens", "window"])
def _forward(
    q, k, v, out, lse, queries, tokens, group, cos, sin, scale, cap, window,
    q_stride: tl.constexpr, k_stride: tl.constexpr, v_stride: tl.constexpr,
    CAPPED: tl.constexpr, WINDOWED: tl.constexpr, TURN: tl.constexpr, WIDEN: tl.constexpr,
    D: tl.constexpr, CUT: tl.constexpr, ONE: tl.constexpr, TWO: tl.constexpr,
    V_CUT: tl.constexpr, V_ONE: tl.constexpr, V_TWO: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One head of one block of queries."""
    head, heads = tl.program_id(0), tl.num_programs(0)
    queries += tl.program_id(1) * 6
    first, end, own, prefix, prefix_end, prefix_tiles, away = query_row(queries, window, WINDOWED, TILE)
    if first >= end:
        return
    k += head // group * D
    v += head // group * D
    q_one, q_two = load_pair(q + head * D, first, end, q_stride, cos, sin, TURN, WIDEN, D, CUT, ONE, TWO, BLOCK)
    highest = tl.full([BLOCK], -3.4e38, dtype=tl.float32)  # finite, so that a tile may be out of a query's sight
    total = tl.zeros([BLOCK], dtype=tl.float32)
    mixed_one = tl.zeros([BLOCK, V_ONE], dtype=tl.float32)
    mixed_two = tl.zeros([BLOCK, V_TWO], dtype=tl.float32)
    for tile in range(prefix_tiles + tl.cdiv(end - own, TILE)):
        place, stop, origin = key_tile(tile, first, end, own, prefix, prefix_end, prefix_tiles, away, TILE)
        k_one, k_two = load_pair(k, place, stop, k_stride, cos, sin, TURN, WIDEN, D, CUT, ONE, TWO, TILE)
        v_one, v_two = load_pair(v, place, stop, v_stride, cos, sin, 0, WIDEN, D, V_CUT, V_ONE, V_TWO, TILE)
        s = scores(q_one, q_two, k_one, k_two, scale, cap, CAPPED)
        s = in_sight(s, place, stop, origin, window, WINDOWED, BLOCK, TILE)
        higher = tl.maximum(highest, tl.max(s, axis=1))
        weight = tl.exp2(s - higher[:, None])
        fade = tl.exp2(highest - higher)
        total = total * fade + tl.sum(weight, axis=1)
        weight = weight.to(v_one.dtype)
        mixed_one = tl.dot(weight, v_one, mixed_one * fade[:, None], input_precision="ieee")
        mixed_two = tl.dot(weight, v_two, mixed_two * fade[:, None], input_precision="ieee")
        highest = higher
    lane = tl.arange(0, BLOCK)
    here = first + lane < end
    total = tl.where(here, total, 1.0)
    mixed_one /= total[:, None]
    mixed_two /= total[:, None]
    store_pair(mixed_one, mixed_two, out + head * D, first, end, heads * D, cos, sin, 0, D, V_CUT, V_ONE, V_TWO, BLOCK)
    tl.store(lse + head.to(tl.int64) * tokens + first + lane, (highest + tl.log2(total)) / LOG2E, here)
