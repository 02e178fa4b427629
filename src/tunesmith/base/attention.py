"""Hands a pack's segments to our attention through transformers' own attention interface."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from tunesmith.base.self_attention import AttentionCall
from tunesmith.kernels.attention import segment_attention
from tunesmith.kernels.cached_attention import Cached
from tunesmith.kernels.segments import Segments

NAME = "tunesmith_segments"

_watched: dict[Any, AttentionCall] | None = None
"""Where calls are noted while `watch_attention` is on."""


def _forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    segments: Segments | Cached | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' signature: query ``[1, H, T, D]``, key and value ``[1, H_kv, T, D]``; gives ``[1, T, H, D]``."""
    if any(kwargs.get(name) is not None for name in ("s_aux", "sinks")):
        raise TypeError(f"{type(module).__name__} has attention sinks")
    if segments is None:
        raise TypeError(f"{type(module).__name__} did not pass the pack's segments on to its attention")
    q, k, v = (tensor.transpose(1, 2).squeeze(0) for tensor in (query, key, value))
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if _watched is not None:
        _watched[module] = AttentionCall(q.shape[1], k.shape[1], q.shape[2], scale, sliding_window, softcap)
    how: dict[str, Any] = {"scaling": scale, "sliding_window": sliding_window, "softcap": softcap}
    if isinstance(segments, Cached):
        out = segments.attention(module.layer_idx, q, k, v, **how)
    else:
        out = segment_attention(q, k, v, segments, **how)
    return out.unsqueeze(0), None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """Segments say who sees whom; a dense mask is never built."""


AttentionInterface.register(NAME, _forward)
AttentionMaskInterface.register(NAME, _no_mask)


@contextmanager
def segments_attention(model: Any) -> Iterator[None]:
    """Within this block the model's attention takes ``segments=…`` instead of a mask."""
    # What set_attn_implementation ends in, without its walk over all modules: this runs at every step.
    config = model.config
    before, config._attn_implementation = config._attn_implementation, NAME
    try:
        yield
    finally:
        config._attn_implementation = before


@contextmanager
def watch_attention(model: Any) -> Iterator[dict[Any, AttentionCall]]:
    """`segments_attention` that notes, by module, what each one hands to its attention."""
    global _watched
    _watched = {}
    try:
        with segments_attention(model):
            yield _watched
    finally:
        _watched = None
