"""Kernels of the gradients of keys and values, launched by `attention_backward.keys_backward`, which says what they compute."""

import triton
import triton.language as tl

from tunesmith.kernels.fused.attention import LOG2E, load_pair, products, rowsum, scores, store_pair
from tunesmith.kernels.fused.kernel import kernel


@kernel(do_not_specialize=["keys", "positions", "tokens", "parts", "window"])
def keys_kernel(
    q, k, v, out, dout, lse, delta, dq, dk, dv, sums, keys, positions, tokens, group, parts, scaling,
    cos, sin, scale, cap, window,
    q_stride: tl.constexpr, k_stride: tl.constexpr, v_stride: tl.constexpr, out_stride: tl.constexpr,
    dout_stride: tl.constexpr, dq_stride: tl.constexpr, dk_stride: tl.constexpr, dv_stride: tl.constexpr,
    SUM_STRIDE: tl.constexpr,
    CAPPED: tl.constexpr, WINDOWED: tl.constexpr, TURN: tl.constexpr, WIDEN: tl.constexpr,
    D: tl.constexpr, CUT: tl.constexpr, ONE: tl.constexpr, TWO: tl.constexpr,
    V_CUT: tl.constexpr, V_ONE: tl.constexpr, V_TWO: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """dK and dV of one key head of one block of keys, or a part of them, and dQ if the block is alone. Tiles have a key a row and
    a query a column."""
    head = tl.program_id(0)
    keys += tl.program_id(1) * 8
    first, end, near, near_end = tl.load(keys), tl.load(keys + 1), tl.load(keys + 2), tl.load(keys + 3)
    if first >= end:
        return
    far, far_end, slot, alone = tl.load(keys + 4), tl.load(keys + 5), tl.load(keys + 6), tl.load(keys + 7) != 0
    if WINDOWED:
        near_end = tl.maximum(tl.minimum(near_end, end + window - 1), near)
    near_tiles = tl.cdiv(near_end - near, TILE)
    tiles = near_tiles + tl.cdiv(far_end - far, TILE)
    k_one, k_two = load_pair(k + head * D, first, end, k_stride, cos, sin, TURN, WIDEN, D, CUT, ONE, TWO, BLOCK)
    v_one, v_two = load_pair(v + head * D, first, end, v_stride, cos, sin, 0, WIDEN, D, V_CUT, V_ONE, V_TWO, BLOCK)
    dk_one = tl.zeros([BLOCK, ONE], dtype=tl.float32)
    dk_two = tl.zeros([BLOCK, TWO], dtype=tl.float32)
    dv_one = tl.zeros([BLOCK, V_ONE], dtype=tl.float32)
    dv_two = tl.zeros([BLOCK, V_TWO], dtype=tl.float32)
    # Two loops, since products and stores under a condition would keep the loads of all tiles from being overlapped.
    if alone:
        for step in range(tiles * group):
            query_head, place, stop = _query_tile(step, head, group, tiles, near, near_end, near_tiles, far, far_end, TILE)
            dk_one, dk_two, dv_one, dv_two = _hear(
                q, out, dout, lse, delta, dq, k_one, k_two, v_one, v_two, dk_one, dk_two, dv_one, dv_two,
                query_head, first, end, place, stop, positions, tokens, scaling, cos, sin, scale, cap, window,
                q_stride, out_stride, dout_stride, dq_stride, True,
                CAPPED, WINDOWED, TURN, WIDEN, D, CUT, ONE, TWO, V_CUT, V_ONE, V_TWO, BLOCK, TILE,
            )  # fmt: skip
    else:
        for step in range(tiles * group):
            query_head, place, stop = _query_tile(step, head, group, tiles, near, near_end, near_tiles, far, far_end, TILE)
            dk_one, dk_two, dv_one, dv_two = _hear(
                q, out, dout, lse, delta, dq, k_one, k_two, v_one, v_two, dk_one, dk_two, dv_one, dv_two,
                query_head, first, end, place, stop, positions, tokens, scaling, cos, sin, scale, cap, window,
                q_stride, out_stride, dout_stride, dq_stride, False,
                CAPPED, WINDOWED, TURN, WIDEN, D, CUT, ONE, TWO, V_CUT, V_ONE, V_TWO, BLOCK, TILE,
            )  # fmt: skip
    dk_one *= scaling
    dk_two *= scaling
    if slot < 0:
        store_pair(dk_one, dk_two, dk + head * D, first, end, dk_stride, cos, sin, TURN, D, CUT, ONE, TWO, BLOCK)
        store_pair(dv_one, dv_two, dv + head * D, first, end, dv_stride, cos, sin, 0, D, V_CUT, V_ONE, V_TWO, BLOCK)
    else:  # `join_kernel` rotates
        place = slot * BLOCK
        store_pair(dk_one, dk_two, sums + head * D, place, place + BLOCK, SUM_STRIDE, cos, sin, 0, D, CUT, ONE, TWO, BLOCK)
        place += parts * BLOCK
        store_pair(dv_one, dv_two, sums + head * D, place, place + BLOCK, SUM_STRIDE, cos, sin, 0, D, V_CUT, V_ONE, V_TWO, BLOCK)


@triton.jit
def _query_tile(step, head, group, tiles, near, near_end, near_tiles, far, far_end, TILE: tl.constexpr):
    """Whose queries a step of `keys_kernel` reads, of its own segment first and then of its children, where they begin and end."""
    tile = step % tiles
    place = tl.where(tile < near_tiles, near + tile * TILE, far + (tile - near_tiles) * TILE)
    return head * group + step // tiles, place, tl.where(tile < near_tiles, near_end, far_end)


@triton.jit
def _hear(
    q, out, dout, lse, delta, dq, k_one, k_two, v_one, v_two, dk_one, dk_two, dv_one, dv_two,
    query_head, first, end, place, stop, positions, tokens, scaling, cos, sin, scale, cap, window,
    q_stride: tl.constexpr, out_stride: tl.constexpr, dout_stride: tl.constexpr, dq_stride: tl.constexpr, ALONE: tl.constexpr,
    CAPPED: tl.constexpr, WINDOWED: tl.constexpr, TURN: tl.constexpr, WIDEN: tl.constexpr,
    D: tl.constexpr, CUT: tl.constexpr, ONE: tl.constexpr, TWO: tl.constexpr,
    V_CUT: tl.constexpr, V_ONE: tl.constexpr, V_TWO: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """dK and dV with what one tile of queries adds; its dQ if the block is alone."""
    token = place + tl.arange(0, TILE)
    index = query_head.to(tl.int64) * tokens + token
    # queries past the stop are zeros, and so is what they add
    q_one, q_two = load_pair(q + query_head * D, place, stop, q_stride, cos, sin, TURN, WIDEN, D, CUT, ONE, TWO, TILE)
    slope_one, slope_two = load_pair(
        dout + query_head * D, place, stop, dout_stride, cos, sin, 0, WIDEN, D, V_CUT, V_ONE, V_TWO, TILE
    )
    level = tl.load(lse + index, token < stop, 0.0) * LOG2E
    s = scores(k_one, k_two, q_one, q_two, scale, cap, CAPPED)
    weight = tl.exp2(_in_hearing(s - level[None, :], first, end, place, stop, positions, window, WINDOWED, BLOCK, TILE))
    dv_one = tl.dot(weight.to(slope_one.dtype), slope_one, dv_one, input_precision="ieee")
    dv_two = tl.dot(weight.to(slope_one.dtype), slope_two, dv_two, input_precision="ieee")
    if ALONE:
        out += query_head * D
        out_one, out_two = load_pair(out, place, stop, out_stride, cos, sin, 0, WIDEN, D, V_CUT, V_ONE, V_TWO, TILE)
        along = rowsum(out_one, out_two, slope_one, slope_two)
    else:
        along = tl.load(delta + index, token < stop, 0.0)
    ds = weight * (products(v_one, v_two, slope_one, slope_two) - along[None, :])
    if CAPPED:
        ds = ds * (1.0 - (s / cap) * (s / cap))
    ds = ds.to(q_one.dtype)
    dk_one = tl.dot(ds, q_one, dk_one, input_precision="ieee")
    dk_two = tl.dot(ds, q_two, dk_two, input_precision="ieee")
    if ALONE:
        dq_one = tl.dot(tl.trans(ds), k_one, input_precision="ieee") * scaling
        dq_two = tl.dot(tl.trans(ds), k_two, input_precision="ieee") * scaling
        store_pair(dq_one, dq_two, dq + query_head * D, place, stop, dq_stride, cos, sin, TURN, D, CUT, ONE, TWO, TILE)
    return dk_one, dk_two, dv_one, dv_two


@triton.jit
def _in_hearing(
    s, first, end, place, stop, positions, window, WINDOWED: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    """`attention.in_sight` with a key a row and a query a column."""
    if (place < first + BLOCK - 1) | WINDOWED:  # keys past the end must not be heard either: inf · 0 in dQ
        key, query = first + tl.arange(0, BLOCK), place + tl.arange(0, TILE)
        seen = query[None, :] >= key[:, None]
        if WINDOWED:
            position = tl.load(positions + query, query < stop, 0)
            seen = seen & (position[None, :] - tl.load(positions + key, key < end, 0)[:, None] < window)
        s = tl.where(seen, s, float("-inf"))
    return s


@kernel(do_not_specialize=["joins", "parts"])
def join_kernel(
    sums, dk, dv, joins, parts, cos, sin,
    SUM_STRIDE: tl.constexpr, dk_stride: tl.constexpr, dv_stride: tl.constexpr, TURN: tl.constexpr,
    D: tl.constexpr, CUT: tl.constexpr, ONE: tl.constexpr, TWO: tl.constexpr,
    V_CUT: tl.constexpr, V_ONE: tl.constexpr, V_TWO: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One key head of one block of keys: the sums of the programs that shared it."""
    head = tl.program_id(0)
    joins += tl.program_id(1) * 4
    first, end, slot, slot_end = tl.load(joins), tl.load(joins + 1), tl.load(joins + 2), tl.load(joins + 3)
    if first >= end:
        return
    sums += head * D
    dk_one = tl.zeros([BLOCK, ONE], dtype=tl.float32)
    dk_two = tl.zeros([BLOCK, TWO], dtype=tl.float32)
    dv_one = tl.zeros([BLOCK, V_ONE], dtype=tl.float32)
    dv_two = tl.zeros([BLOCK, V_TWO], dtype=tl.float32)
    for part in range(slot, slot_end):
        place = part * BLOCK
        one, two = load_pair(sums, place, place + BLOCK, SUM_STRIDE, cos, sin, 0, False, D, CUT, ONE, TWO, BLOCK)
        dk_one += one
        dk_two += two
        place += parts * BLOCK
        one, two = load_pair(sums, place, place + BLOCK, SUM_STRIDE, cos, sin, 0, False, D, V_CUT, V_ONE, V_TWO, BLOCK)
        dv_one += one
        dv_two += two
    store_pair(dk_one, dk_two, dk + head * D, first, end, dk_stride, cos, sin, TURN, D, CUT, ONE, TWO, BLOCK)
    store_pair(dv_one, dv_two, dv + head * D, first, end, dv_stride, cos, sin, 0, D, V_CUT, V_ONE, V_TWO, BLOCK)
