"""Attention over segments of one flat token array: no padding outside attention, no dense mask over a pack.

A pack lies flat as ``[T]`` tokens: shared prefixes first, then documents, like lengths side by side. A document attends
to the prefix it continues (all of it) and causally to itself, and to nothing else. Documents of like length form a
bucket that is padded only here, so the linears around attention see valid tokens alone.

Legend: T tokens of the pack, H heads, D head size, n documents of a bucket, S their padded length, P prefix length.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tunesmith.kernels.fused_attention import FusedAttention, is_fused, rotates_inside
from tunesmith.kernels.rope import rotary
from tunesmith.kernels.segments import Bucket, Segments, segment_positions


def segment_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    *,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attention of every segment to its prefix and itself.

    Args:
        query: ``[T, H, D]``; key, value: ``[T, H_kv, D]`` with H a multiple of H_kv (grouped-query attention).
        scaling: factor on the scores. sliding_window: a token sees at most this many tokens, itself included.
        softcap: c in ``c · tanh(scores / c)`` (Gemma 2).

    Returns:
        ``[T, H, D]``.
    """
    if is_fused(query, value):
        out: Tensor = FusedAttention.apply(query, key, value, None, None, segments, scaling, sliding_window, softcap)
        return out
    parts = []
    for bucket in segments.buckets:
        q = _pad(_rows(query, bucket.tokens), bucket)
        k = _with_prefix(key, bucket)
        v = _with_prefix(value, bucket)
        out = _attend(q, k, v, scaling, sliding_window, softcap)
        parts.append(_unpad(out, bucket))
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def rotary_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    segments: Segments,
    *,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """`rotary` and then `segment_attention`; on a GPU in one, the rotation on the way into the chip where that is cheaper.

    Args:
        cos, sin: ``[T, R]`` with both halves of a row alike, R ≤ D.
    """
    if rotates_inside(query, cos, segments):
        out: Tensor = FusedAttention.apply(query, key, value, cos, sin, segments, scaling, sliding_window, softcap)
        return out
    query, key, value = rotary(query, key, value, cos, sin)
    return segment_attention(query, key, value, segments, scaling=scaling, sliding_window=sliding_window, softcap=softcap)


def segment_attention_plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    *,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """The plain twin of `segment_attention`: one dense mask ``[T, T]`` that says which token sees which."""
    positions = segment_positions(segments).to(query.device)
    owner = torch.repeat_interleave(torch.arange(len(segments.lengths)), torch.tensor(segments.lengths))
    parent = torch.tensor(segments.parents)[owner]
    same = owner[:, None] == owner[None, :]
    inherited = parent[:, None] == owner[None, :]
    distance = positions[:, None] - positions[None, :]
    allowed = (same | inherited).to(query.device) & (distance >= 0)
    if sliding_window is not None:
        allowed &= distance < sliding_window
    groups = query.shape[1] // key.shape[1]
    scores = torch.einsum("qhd,khd->hqk", query, key.repeat_interleave(groups, 1)) * scaling
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, value.repeat_interleave(groups, 1))


def _attend(q: Tensor, k: Tensor, v: Tensor, scaling: float, window: int | None, softcap: float | None) -> Tensor:
    """``[n, S, H, D]`` from q ``[n, S, H, D]`` and k, v ``[n, P + S, H_kv, D]``; the last S keys are the queries' own."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    length, total = q.shape[2], k.shape[2]
    if window is not None and window >= total:
        window = None
    if softcap:
        return _attend_softcap(q, k, v, scaling, window, softcap)
    grouped = q.shape[1] != k.shape[1]
    if length == total and window is None:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped)
    else:
        mask = _mask(length, total, window, q)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling, enable_gqa=grouped)
    return out.transpose(1, 2)


def _attend_softcap(q: Tensor, k: Tensor, v: Tensor, scaling: float, window: int | None, softcap: float) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = softcap * torch.tanh(q @ k.transpose(2, 3) * (scaling / softcap))
    wide = torch.promote_types(q.dtype, torch.float32)
    weights = (scores + _mask(q.shape[2], k.shape[2], window, q)).softmax(-1, dtype=wide).to(q.dtype)
    return (weights @ v).transpose(1, 2)


def _mask(length: int, total: int, window: int | None, like: Tensor) -> Tensor:
    """Additive mask ``[S, P + S]``: causal with the last S keys aligned to the S queries."""
    allowed = torch.ones(length, total, dtype=torch.bool, device=like.device).tril(total - length)
    if window is not None:
        allowed = allowed.triu(total - length - window + 1)
    return torch.zeros(length, total, dtype=like.dtype, device=like.device).masked_fill_(~allowed, float("-inf"))


def _with_prefix(flat: Tensor, bucket: Bucket) -> Tensor:
    own = _pad(_rows(flat, bucket.tokens), bucket)
    if bucket.prefix is None:
        return own
    prefix = flat[bucket.prefix].unsqueeze(0).expand(bucket.count, -1, -1, -1)
    return torch.cat([prefix, own], dim=1)


def _rows(flat: Tensor, part: slice) -> Tensor:
    """A slice of the tokens; all of them are the tensor itself, whose gradient then needs no zeros around it."""
    return flat if part == slice(0, flat.shape[0]) else flat[part]


def _pad(flat: Tensor, bucket: Bucket) -> Tensor:
    """``[tokens, H, D]`` to ``[n, S, H, D]``."""
    if bucket.valid is not None:
        flat = _Pad.apply(flat, bucket.source, bucket.valid)
    return flat.reshape(bucket.count, bucket.length, *flat.shape[1:])


def _unpad(padded: Tensor, bucket: Bucket) -> Tensor:
    """``[n, S, H, D]`` to ``[tokens, H, D]``."""
    flat = padded.reshape(bucket.count * bucket.length, *padded.shape[2:])
    return flat if bucket.valid is None else _Unpad.apply(flat, bucket.valid)


class _Pad(torch.autograd.Function):
    """Rows to the slots of padded documents. What stands past a document's end has no gradient: no query that counts sees it. So
    the gradient is a plain copy, where autograd's own indexing would accumulate, on one thread."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, source: Tensor, valid: Tensor) -> Tensor:
        ctx.save_for_backward(valid)
        return rows.index_select(0, source)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad.index_select(0, ctx.saved_tensors[0]), None, None


class _Unpad(torch.autograd.Function):
    """The rows of padded documents that hold a token. Their slots are distinct: the gradient is a plain copy, too."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, valid: Tensor) -> Tensor:
        ctx.save_for_backward(valid)
        ctx.size = padded.shape[0]
        return padded.index_select(0, valid)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad.new_zeros(ctx.size, *grad.shape[1:]).index_copy_(0, ctx.saved_tensors[0], grad), None
