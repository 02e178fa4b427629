"""Decoder layers with the additions to the residual stream inside the norms: the layer's own parts, called one after another.

A layer is switched only if this gives what its own forward gives on a probe: families that scale the stream, normalise
after a block instead of before it, or do anything else, keep their own.
"""

from typing import Any

from torch import Tensor, nn

from tunesmith.base.norm import LeanRMSNorm

PARTS = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}


class _Lean:
    """The forward of a switched layer; packs take it, anything else (generation with a cache) the layer's own."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs.get("segments") is None:
            own: Tensor = super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc]
            return own
        return layer_forward(self, hidden_states, kwargs)


def layer_forward(layer: Any, x: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """``x + attention(norm(x))`` and then the same with the MLP, ``[1, T, H]``."""
    stream, normed = layer.input_layernorm.beside(x)
    attended = layer.self_attn(hidden_states=normed, **kwargs)[0]
    stream, normed = layer.post_attention_layernorm.beside(stream, attended)
    out: Tensor = stream + layer.mlp(normed)
    return out


def is_pre_norm_layer(module: nn.Module) -> bool:
    """Whether the module has the parts of such a layer and no others, its norms being ours; what it computes is for a probe
    to show."""
    parts = dict(module.named_children())
    norms = [part for name, part in parts.items() if name in PARTS and name.endswith("norm")]
    others = [part for name, part in parts.items() if name not in PARTS]
    idle = all(isinstance(part, nn.Dropout) and part.p == 0 for part in others)
    return parts.keys() >= PARTS and idle and all(isinstance(norm, LeanRMSNorm) for norm in norms)


def switch(layer: nn.Module) -> None:
    """Let this layer take our forward: it becomes a subclass of what it was, so that recomputation and hooks stay."""
    own = type(layer)
    layer.__class__ = type(own.__name__, (_Lean, own), {"__module__": own.__module__})
