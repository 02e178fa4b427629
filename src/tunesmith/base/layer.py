"""Decoder layers with the additions to the residual stream inside the norms: the layer's own parts, called one after another.

A layer is switched only if this gives what its own forward gives on a probe: families that scale the stream, normalise
after a block instead of before it, or do anything else, keep their own. What the last layer makes of a token is read only
where something is predicted, so its MLP need not run anywhere else.
"""

from typing import Any

from torch import Tensor, nn

from tunesmith.base.norm import LeanRMSNorm

PARTS = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}


class _Lean:
    """The forward of a switched layer; packs take it, anything else (generation with a cache) the layer's own. picks_rows:
    this is the last layer, and what comes after it takes token by token, so that rows nobody asks for can be left out."""

    picks_rows = False

    def forward(self, hidden_states: Tensor, *args: Any, label_index: Tensor | None = None, **kwargs: Any) -> Tensor:
        if args or kwargs.get("segments") is None:
            own: Tensor = super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc]
            return own
        return layer_forward(self, hidden_states, kwargs, label_index if self.picks_rows else None)


def layer_forward(layer: Any, x: Tensor, kwargs: dict[str, Any], rows: Tensor | None = None) -> Tensor:
    """``x + attention(norm(x))`` and then the same with the MLP, ``[1, T, H]``; of these rows only ``[1, N, H]``."""
    stream, normed = layer.input_layernorm.beside(x)
    attended = layer.self_attn(hidden_states=normed, **kwargs)[0]
    if rows is None:
        stream, normed = layer.post_attention_layernorm.beside(stream, attended)
    else:
        stream, normed = layer.post_attention_layernorm.beside((stream + attended).index_select(1, rows))
    out: Tensor = stream + layer.mlp(normed)
    return out


def labelled_states(decoder: Any, label_index: Tensor, **inputs: Any) -> Tensor:
    """``[N, H]``, a decoder's output at the positions ``label_index`` ``[N]`` of a pack."""
    last = last_layer(decoder)
    if last is not None and last.picks_rows:
        picked: Tensor = decoder(**inputs, label_index=label_index, use_cache=False).last_hidden_state[0]
        return picked
    every: Tensor = decoder(**inputs, use_cache=False).last_hidden_state[0]
    return every.index_select(0, label_index)


def last_layer(decoder: Any) -> _Lean | None:
    """The decoder's last layer, if it was switched."""
    layers = getattr(decoder, "layers", None)
    return layers[-1] if isinstance(layers, nn.ModuleList) and len(layers) and isinstance(layers[-1], _Lean) else None


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
