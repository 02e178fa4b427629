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
import triton.language as tl
from torch import Tensor

from tunesmith.kernels.fused.attention import (
    LOG2E,
    check,
    columns,
    common_arguments,
    in_sight,
    key_tile,
    load_pair,
    products,
    query_row,
    rowsum,
    scores,
    store_pair,
)
from tunesmith.kernels.fused.attention_keys import join_kernel, keys_kernel
from tunesmith.kernels.fused.attention_layout import Layout
from tunesmith.kernels.fused.attention_tiles import KEYS, QUERIES, Tiles
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

    def arguments(self, tiles: Tiles) -> dict[str, Any]:
        """Those that both kernels with scores have."""
        shared = common_arguments(self.q, self.layout, self.scaling, self.sliding_window, self.softcap, self.cos, self.sin)
        shared |= tiles.of(self.q, self.layout, self.cos is not None)
        names = ("q", "k", "v", "out", "dout", "dq")
        return shared | {f"{name}_stride": getattr(self, name).stride(0) for name in names}


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
        heads // work.k.shape[1], work.scaling, **work.arguments(QUERIES),
    )  # fmt: skip


def keys_backward(work: Work) -> None:
    """dk and dv, from delta; and dq of blocks that are alone."""
    layout, (tokens, heads, size), key_heads = work.layout, work.q.shape, work.k.shape[1]
    shared = work.arguments(KEYS)
    strides = {"dk_stride": work.dk.stride(0), "dv_stride": work.dv.stride(0), "SUM_STRIDE": key_heads * size}
    sums = torch.empty(2, layout.parts, layout.block, key_heads, size, dtype=torch.float32, device=work.q.device)
    keys_kernel[(key_heads, layout.keys.shape[0])](
        work.q, work.k, work.v, work.out, work.dout, work.lse, work.delta, work.dq, work.dk, work.dv, sums, layout.keys,
        layout.positions, tokens, heads // key_heads, layout.parts, work.scaling, **shared, **strides,
    )  # fmt: skip
    if layout.parts:
        join_kernel[(key_heads, layout.joins.shape[0])](
            sums, work.dk, work.dv, layout.joins, layout.parts, shared["cos"], shared["sin"], **strides, TURN=shared["TURN"],
            **columns(size, work.cos is not None), BLOCK=layout.block, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip


@kernel(do_not_specialize=["queries", "tokens", "window"])
def _queries(
    q, k, v, out, dout, lse, delta, dq, queries, tokens, group, scaling, cos, sin, scale, cap, window,
    q_stride: tl.constexpr, k_stride: tl.constexpr, v_stride: tl.constexpr,
    out_stride: tl.constexpr, dout_stride: tl.constexpr, dq_stride: tl.constexpr,
    CAPPED: tl.constexpr, WINDOWED: tl.constexpr, TURN: tl.constexpr, WIDEN: tl.constexpr,
    D: tl.constexpr, CUT: tl.constexpr, ONE: tl.constexpr, TWO: tl.constexpr,
    V_CUT: tl.constexpr, V_ONE: tl.constexpr, V_TWO: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """dQ of one head of one block of queries that is not alone; and rowsum(O ∘ dO), which `attention_keys` needs."""
    head = tl.program_id(0)
    queries += tl.program_id(1) * 6
    first, end, own, prefix, prefix_end, prefix_tiles, away = query_row(queries, window, WINDOWED, TILE)
    if first >= end or tl.load(queries + 5) != 0:
        return
    k += head // group * D
    v += head // group * D
    token = first + tl.arange(0, BLOCK)
    slope_one, slope_two = load_pair(dout + head * D, first, end, dout_stride, cos, sin, 0, WIDEN, D, V_CUT, V_ONE, V_TWO, BLOCK)
    out_one, out_two = load_pair(out + head * D, first, end, out_stride, cos, sin, 0, WIDEN, D, V_CUT, V_ONE, V_TWO, BLOCK)
    along = rowsum(out_one, out_two, slope_one, slope_two)
    slot = head.to(tl.int64) * tokens + token
    tl.store(delta + slot, along, token < end)
    level = tl.load(lse + slot, token < end, 0.0) * LOG2E
    q_one, q_two = load_pair(q + head * D, first, end, q_stride, cos, sin, TURN, WIDEN, D, CUT, ONE, TWO, BLOCK)
    total_one = tl.zeros([BLOCK, ONE], dtype=tl.float32)
    total_two = tl.zeros([BLOCK, TWO], dtype=tl.float32)
    for tile in range(prefix_tiles + tl.cdiv(end - own, TILE)):
        place, stop, origin = key_tile(tile, first, end, own, prefix, prefix_end, prefix_tiles, away, TILE)
        k_one, k_two = load_pair(k, place, stop, k_stride, cos, sin, TURN, WIDEN, D, CUT, ONE, TWO, TILE)
        v_one, v_two = load_pair(v, place, stop, v_stride, cos, sin, 0, WIDEN, D, V_CUT, V_ONE, V_TWO, TILE)
        s = scores(q_one, q_two, k_one, k_two, scale, cap, CAPPED)
        weight = tl.exp2(in_sight(s - level[:, None], place, stop, origin, window, WINDOWED, BLOCK, TILE))
        ds = weight * (products(slope_one, slope_two, v_one, v_two) - along[:, None])
        if CAPPED:
            ds = ds * (1.0 - (s / cap) * (s / cap))
        ds = ds.to(k_one.dtype)
        total_one = tl.dot(ds, k_one, total_one, input_precision="ieee")
        total_two = tl.dot(ds, k_two, total_two, input_precision="ieee")
    total_one *= scaling
    total_two *= scaling
    store_pair(total_one, total_two, dq + head * D, first, end, dq_stride, cos, sin, TURN, D, CUT, ONE, TWO, BLOCK)
