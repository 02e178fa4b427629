"""The gradient of `attention`: scores are computed again from q, k and their logsumexp, a tile at a time.

With weights ``P = exp(S − lse)``, out ``O = P V`` and its gradient dO:  ``dV = Pᵀ dO``,  ``dP = dO Vᵀ``,
``dS = P ∘ (dP − rowsum(O ∘ dO))`` (times ``1 − (S / c)²`` under a softcap c),  ``dQ = scaling · dS K``,
``dK = scaling · dSᵀ Q``. A program has a block of queries for dQ, a block of keys for dK and dV. A segment of one block that
stands alone has all its queries and keys in one program, which makes dQ too: most short documents are read once. Where a prefix
has many children, several programs share a block of keys, leave fp32 sums in slots, and another kernel adds these.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tunesmith.kernels.fused.attention import (
    LOG2E,
    check,
    common_arguments,
    key_tile,
    load_pair,
    load_tile,
    query_row,
    scores,
    store_pair,
    store_tile,
)
from tunesmith.kernels.fused.attention_layout import Layout
from tunesmith.kernels.fused.kernel import kernel


@dataclass(frozen=True)
class Work:
    """What backward reads, and dq, dk, dv that it writes, for arguments and results of `attention.segment_attention_forward`.

    dout, q, out, dq: ``[T, H, D]``; k, v, dk, dv: ``[T, H_kv, D]``; any stride between tokens, a token's heads side by side.
    lse, delta: ``[H, T]`` fp32, delta being handed from one kernel to the next.
    """

    dout: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    lse: Tensor
    delta: Tensor
    layout: Layout
    scaling: float
    sliding_window: int | None
    softcap: float | None
    dq: Tensor
    dk: Tensor
    dv: Tensor
    cos: Tensor | None
    sin: Tensor | None

    def arguments(self) -> dict[str, Any]:
        """Those that all kernels have."""
        shared = common_arguments(self.q, self.layout, self.scaling, self.sliding_window, self.softcap, self.cos, self.sin)
        strides = {"q_stride": self.q.stride(0), "k_stride": self.k.stride(0), "v_stride": self.v.stride(0)}
        return shared | strides | {"dout_stride": self.dout.stride(0)}


def segment_attention_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    layout: Layout,
    scaling: float,
    sliding_window: int | None,
    softcap: float | None,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
) -> None:
    """Gradients into dq, dk, dv, for arguments and results of `attention.segment_attention_forward` (shapes: `Work`)."""
    check(layout, q, k, v, out, dout, dq, dk, dv)
    delta = torch.empty_like(lse)
    work = Work(dout, q, k, v, out, lse, delta, layout, scaling, sliding_window, softcap, dq, dk, dv, cos, sin)
    queries_backward(work)
    keys_backward(work)


def queries_backward(work: Work) -> None:
    """dq and delta, but of blocks that are alone."""
    layout, (tokens, heads, _) = work.layout, work.q.shape
    _queries[(heads, layout.queries.shape[0])](
        work.q, work.k, work.v, work.out, work.dout, work.lse, work.delta, work.dq, layout.queries, tokens,
        heads // work.k.shape[1], work.scaling, **work.arguments(),
        out_stride=work.out.stride(0), dq_stride=work.dq.stride(0),
    )  # fmt: skip


def keys_backward(work: Work) -> None:
    """dk and dv, from delta; and dq of blocks that are alone."""
    layout, (tokens, heads, size), key_heads = work.layout, work.q.shape, work.k.shape[1]
    shared = work.arguments()
    strides = {"dk_stride": work.dk.stride(0), "dv_stride": work.dv.stride(0), "SUM_STRIDE": key_heads * size}
    sums = torch.empty(2, layout.parts, layout.block, key_heads, size, dtype=torch.float32, device=work.q.device)
    _keys[(key_heads, layout.keys.shape[0])](
        work.q, work.k, work.v, work.out, work.dout, work.lse, work.delta, work.dq, work.dk, work.dv, sums, layout.keys,
        layout.positions, tokens, heads // key_heads, layout.parts, work.scaling, **shared, **strides,
        out_stride=work.out.stride(0), dq_stride=work.dq.stride(0), STEP=_step(layout.block, shared["SIZE"], work.q.element_size()),
    )  # fmt: skip
    if layout.parts:
        _join[(key_heads, layout.joins.shape[0])](
            sums, work.dk, work.dv, layout.joins, layout.parts, shared["cos"], shared["sin"], **strides, TURN=shared["TURN"],
            D=size, SIZE=shared["SIZE"], HALF=shared["HALF"], BLOCK=layout.block, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip


def _step(block: int, size: int, width: int) -> int:
    """Queries a tile of `_keys` has, so that the sums of both gradients and two tiles of scores fit the registers."""
    return max(16, min(block, (4096 if width == 2 else 1024) // size))


@triton.jit
def _weights(s, lse, seen):
    """exp(s − lse) of what is seen, 0 elsewhere."""
    return tl.exp2(tl.where(seen, s - lse, float("-inf")))


@kernel(do_not_specialize=["queries", "tokens", "window"])
def _queries(
    q, k, v, out, dout, lse, delta, dq, queries, tokens, group, scaling, cos, sin, scale, cap, window,
    q_stride: tl.constexpr, k_stride: tl.constexpr, v_stride: tl.constexpr,
    out_stride: tl.constexpr, dout_stride: tl.constexpr, dq_stride: tl.constexpr,
    CAPPED: tl.constexpr, WINDOWED: tl.constexpr, TURN: tl.constexpr, WIDEN: tl.constexpr,
    D: tl.constexpr, SIZE: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dQ of one head of one block of queries that is not alone; and rowsum(O ∘ dO), which `_keys` needs."""
    head = tl.program_id(0)
    queries += tl.program_id(1) * 6
    first, end, own, prefix, prefix_end, prefix_tiles, away = query_row(queries, window, WINDOWED, BLOCK)
    if first >= end or tl.load(queries + 5) != 0:
        return
    k += head // group * D
    v += head // group * D
    token = first + tl.arange(0, BLOCK)
    slope = load_tile(dout + head * D, first, end, dout_stride, WIDEN, D, SIZE, BLOCK)
    mixed = load_tile(out + head * D, first, end, out_stride, WIDEN, D, SIZE, BLOCK)
    along = tl.sum(mixed.to(tl.float32) * slope.to(tl.float32), axis=1)
    slot = head.to(tl.int64) * tokens + token
    tl.store(delta + slot, along, token < end)
    level = tl.load(lse + slot, token < end, 0.0) * LOG2E
    q_one, q_two = load_pair(q + head * D, first, end, q_stride, cos, sin, TURN, WIDEN, D, HALF, BLOCK)
    total_one = tl.zeros([BLOCK, HALF], dtype=tl.float32)
    total_two = tl.zeros([BLOCK, HALF], dtype=tl.float32)
    for tile in range(prefix_tiles + tl.cdiv(end - own, BLOCK)):
        place, stop, seen = key_tile(tile, first, end, own, prefix, prefix_end, prefix_tiles, away, window, WINDOWED, BLOCK)
        k_one, k_two = load_pair(k, place, stop, k_stride, cos, sin, TURN, WIDEN, D, HALF, BLOCK)
        value = load_tile(v, place, stop, v_stride, WIDEN, D, SIZE, BLOCK)
        s = scores(q_one, q_two, k_one, k_two, scale, cap, CAPPED)
        ds = _weights(s, level[:, None], seen) * (tl.dot(slope, tl.trans(value), input_precision="ieee") - along[:, None])
        if CAPPED:
            ds = ds * (1.0 - (s / cap) * (s / cap))
        ds = ds.to(k_one.dtype)
        total_one = tl.dot(ds, k_one, total_one, input_precision="ieee")
        total_two = tl.dot(ds, k_two, total_two, input_precision="ieee")
    total_one *= scaling
    total_two *= scaling
    store_pair(total_one, total_two, dq + head * D, first, end, dq_stride, cos, sin, TURN, D, HALF, BLOCK)


@kernel(do_not_specialize=["keys", "positions", "tokens", "parts", "window"])
def _keys(
    q, k, v, out, dout, lse, delta, dq, dk, dv, sums, keys, positions, tokens, group, parts, scaling,
    cos, sin, scale, cap, window,
    q_stride: tl.constexpr, k_stride: tl.constexpr, v_stride: tl.constexpr, out_stride: tl.constexpr,
    dout_stride: tl.constexpr, dq_stride: tl.constexpr, dk_stride: tl.constexpr, dv_stride: tl.constexpr,
    SUM_STRIDE: tl.constexpr,
    CAPPED: tl.constexpr, WINDOWED: tl.constexpr, TURN: tl.constexpr, WIDEN: tl.constexpr,
    D: tl.constexpr, SIZE: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
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
    near_tiles = tl.cdiv(near_end - near, STEP)
    tiles = near_tiles + tl.cdiv(far_end - far, STEP)
    own = first + tl.arange(0, BLOCK)
    if WINDOWED:
        own_position = tl.load(positions + own, own < end, 0)
    k_one, k_two = load_pair(k + head * D, first, end, k_stride, cos, sin, TURN, WIDEN, D, HALF, BLOCK)
    value = load_tile(v + head * D, first, end, v_stride, WIDEN, D, SIZE, BLOCK)
    dk_one = tl.zeros([BLOCK, HALF], dtype=tl.float32)
    dk_two = tl.zeros([BLOCK, HALF], dtype=tl.float32)
    dvalue = tl.zeros([BLOCK, SIZE], dtype=tl.float32)
    for step in range(tiles * group):
        query_head, tile = head * group + step // tiles, step % tiles
        place = tl.where(tile < near_tiles, near + tile * STEP, far + (tile - near_tiles) * STEP)
        stop = tl.where(tile < near_tiles, near_end, far_end)
        token = place + tl.arange(0, STEP)
        index = query_head.to(tl.int64) * tokens + token
        # queries past the stop are zeros, and so is what they add
        q_one, q_two = load_pair(q + query_head * D, place, stop, q_stride, cos, sin, TURN, WIDEN, D, HALF, STEP)
        slope = load_tile(dout + query_head * D, place, stop, dout_stride, WIDEN, D, SIZE, STEP)
        level = tl.load(lse + index, token < stop, 0.0) * LOG2E
        seen = token[None, :] >= own[:, None]
        if WINDOWED:
            position = tl.load(positions + token, token < stop, 0)
            seen = seen & (position[None, :] - own_position[:, None] < window)
        s = scores(k_one, k_two, q_one, q_two, scale, cap, CAPPED)
        weight = _weights(s, level[None, :], seen)
        dvalue = tl.dot(weight.to(slope.dtype), slope, dvalue, input_precision="ieee")
        if alone:
            mixed = load_tile(out + query_head * D, place, stop, out_stride, WIDEN, D, SIZE, STEP)
            along = tl.sum(mixed.to(tl.float32) * slope.to(tl.float32), axis=1)
        else:
            along = tl.load(delta + index, token < stop, 0.0)
        ds = weight * (tl.dot(value, tl.trans(slope), input_precision="ieee") - along[None, :])
        if CAPPED:
            ds = ds * (1.0 - (s / cap) * (s / cap))
        ds = ds.to(q_one.dtype)
        dk_one = tl.dot(ds, q_one, dk_one, input_precision="ieee")
        dk_two = tl.dot(ds, q_two, dk_two, input_precision="ieee")
        if alone:
            dq_one = tl.dot(tl.trans(ds), k_one, input_precision="ieee") * scaling
            dq_two = tl.dot(tl.trans(ds), k_two, input_precision="ieee") * scaling
            store_pair(dq_one, dq_two, dq + query_head * D, place, stop, dq_stride, cos, sin, TURN, D, HALF, STEP)
    dk_one *= scaling
    dk_two *= scaling
    if slot < 0:
        store_pair(dk_one, dk_two, dk + head * D, first, end, dk_stride, cos, sin, TURN, D, HALF, BLOCK)
        store_tile(dvalue, dv + head * D, first, end, dv_stride, D, SIZE, BLOCK)
    else:  # `_join` rotates
        place = slot * BLOCK
        store_pair(dk_one, dk_two, sums + head * D, place, place + BLOCK, SUM_STRIDE, cos, sin, 0, D, HALF, BLOCK)
        place += parts * BLOCK
        store_tile(dvalue, sums + head * D, place, place + BLOCK, SUM_STRIDE, D, SIZE, BLOCK)


@kernel(do_not_specialize=["joins", "parts"])
def _join(
    sums, dk, dv, joins, parts, cos, sin,
    SUM_STRIDE: tl.constexpr, dk_stride: tl.constexpr, dv_stride: tl.constexpr, TURN: tl.constexpr,
    D: tl.constexpr, SIZE: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One key head of one block of keys: the sums of the programs that shared it."""
    head = tl.program_id(0)
    joins += tl.program_id(1) * 4
    first, end, slot, slot_end = tl.load(joins), tl.load(joins + 1), tl.load(joins + 2), tl.load(joins + 3)
    if first >= end:
        return
    sums += head * D
    dk_one = tl.zeros([BLOCK, HALF], dtype=tl.float32)
    dk_two = tl.zeros([BLOCK, HALF], dtype=tl.float32)
    dvalue = tl.zeros([BLOCK, SIZE], dtype=tl.float32)
    for part in range(slot, slot_end):
        place = part * BLOCK
        one, two = load_pair(sums, place, place + BLOCK, SUM_STRIDE, cos, sin, 0, False, D, HALF, BLOCK)
        dk_one += one
        dk_two += two
        place += parts * BLOCK
        dvalue += load_tile(sums, place, place + BLOCK, SUM_STRIDE, False, D, SIZE, BLOCK)
    store_pair(dk_one, dk_two, dk + head * D, first, end, dk_stride, cos, sin, TURN, D, HALF, BLOCK)
    store_tile(dvalue, dv + head * D, first, end, dv_stride, D, SIZE, BLOCK)
