"""Self-attention over flat segments: the layers and settings of a transformers attention module, our own path between.

A module is taken over only if ours gives the same output on a probe; its scale, window and softcap are what the module
itself hands to its attention function. Anything that is not a pack (generation with a cache) goes to the original.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.base.mlp import close, distance
from tunesmith.kernels.attention import rotary_attention
from tunesmith.kernels.cached_attention import Cached
from tunesmith.kernels.columns import split_columns
from tunesmith.kernels.rope import rotary
from tunesmith.kernels.segments import Segments

SEPARATE, FUSED = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"qkv_proj", "o_proj"}


@dataclass(frozen=True)
class AttentionCall:
    """What a module hands to its attention function: heads H, key heads H_kv, head size D; scaling of the scores; a sliding
    window in tokens or None; the scores' softcap or None."""

    heads: int
    key_heads: int
    head_dim: int
    scaling: float
    sliding_window: int | None
    softcap: float | None


class LeanAttention(nn.Module):
    """Attention of a pack over the very layers of a transformers attention module."""

    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    qkv_proj: nn.Module
    o_proj: nn.Module

    def __init__(self, attention: nn.Module, call: AttentionCall) -> None:
        super().__init__()
        self.call = call
        self.layer_idx: int = getattr(attention, "layer_idx", -1)
        self._original = (attention,)  # in a tuple: its layers are registered here, once, under their own names
        for name, child in attention.named_children():
            self.add_module(name, child)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        segments: Segments | Cached | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """transformers' signature: hidden_states ``[1, T, K]``, position_embeddings cos and sin ``[1, T, R]``."""
        if segments is None or position_embeddings is None:
            original = self._original[0].train(self.training)
            return original(hidden_states=hidden_states, position_embeddings=position_embeddings, **kwargs)
        cos, sin = (table.reshape(-1, table.shape[-1]) for table in position_embeddings)
        q, k, v = self._heads(hidden_states.squeeze(0))
        call = self.call
        how: dict[str, Any] = {"scaling": call.scaling, "sliding_window": call.sliding_window, "softcap": call.softcap}
        if isinstance(segments, Cached):
            out = segments.attention(self.layer_idx, *rotary(q, k, v, cos, sin), **how)
        else:
            out = rotary_attention(q, k, v, cos, sin, segments, **how)
        return self.o_proj(out.reshape(1, out.shape[0], -1)), None

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[T, H, D]``, ``[T, H_kv, D]``, ``[T, H_kv, D]`` before rotation."""
        call = self.call
        widths = [count * call.head_dim for count in (call.heads, call.key_heads, call.key_heads)]
        if hasattr(self, "qkv_proj"):
            q, k, v = split_columns(self.qkv_proj(x), widths)
        else:
            q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return self._normed(q, "q_norm"), self._normed(k, "k_norm"), self._split(v)

    def _normed(self, x: Tensor, name: str) -> Tensor:
        """Heads of a projection, normalised where the family does so: over all of it (OLMo 2) or a head (Qwen 3)."""
        norm = getattr(self, name, None)
        if norm is None:
            return self._split(x)
        if norm.weight.shape[0] == x.shape[-1] != self.call.head_dim:
            return self._split(norm(x))
        return norm(self._split(x))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.call.head_dim))


def is_self_attention(module: Any) -> bool:
    """Whether the module has the layers of a rotary self-attention; what it computes is checked by `same_attention`."""
    names = {name for name, child in module.named_children()}
    return not isinstance(module, LeanAttention) and (names >= SEPARATE or names >= FUSED)


@torch.no_grad()
def same_attention(lean: LeanAttention, attention: nn.Module, given: dict[str, Any], expected: Tensor) -> bool:
    """Whether ours gives what the model's own gave for the arguments of a probe, as far as its rounding lets that be told: large
    scores turn a last digit of the input into much of the output, and that much is allowed, twice."""
    try:
        got = lean(**given)[0]
    except (TypeError, AttributeError, RuntimeError, ValueError):  # layers of another shape, arguments of another kind
        return False
    nudged = attention.forward(**given | {"hidden_states": _nudged(given["hidden_states"])})[0]
    return close(got, expected, rounding=2 * distance(nudged, expected))


def _nudged(x: Tensor) -> Tensor:
    """x with about one unit in the last place added or taken away, by a fixed draw."""
    signs = torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(0)).mul_(2).sub_(1).to(x.device)
    return (x.double() * (1 + 0.5 * torch.finfo(x.dtype).eps * signs)).to(x.dtype)
