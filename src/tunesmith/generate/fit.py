"""Whether a model can be decoded over a static store, found by trying: nothing is looked up in a list of families."""

import inspect
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from tunesmith.base.adapter import without_adapter
from tunesmith.base.attention import watch_attention
from tunesmith.base.mlp import distance
from tunesmith.base.self_attention import AttentionCall, LeanAttention
from tunesmith.generate.cached import CachedRows
from tunesmith.kernels.cached_attention import StoreShape
from tunesmith.kernels.segments import Segments

PROBES = ((3, 4, 5, 6, 7, 8, 9), (3, 4, 5, 6, 11, 12, 13, 14, 15, 16), (3, 4, 5, 6, 17))
"""Prompts that begin alike and differ in length."""
STEPS = ((18, 19, 20), (21, 22, 23), (24, 25, 26))
TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3}
"""Distance of logits, as a share of their norm, that rounding may make; `COARSE` in 16 bits."""
COARSE = 0.1
PROBE_ERRORS = (TypeError, AttributeError, ValueError, RuntimeError, KeyError, IndexError)
LENGTH_DEPENDENT = {"dynamic", "longrope"}

_found: "WeakKeyDictionary[Any, StoreShape | str]" = WeakKeyDictionary()


def store_shape(model: Any) -> StoreShape | str:
    """What a store for this model looks like, or why none serves it. Tried once a model, in a few short forward passes."""
    if model not in _found:
        _found[model] = _try(model)
    return _found[model]


@torch.no_grad()
def _try(model: Any) -> StoreShape | str:
    base = without_adapter(model)
    if "logits_to_keep" not in inspect.signature(base.forward).parameters:
        return "its forward pass takes no logits_to_keep"
    if kinds := LENGTH_DEPENDENT & _rope_kinds(base.config.get_text_config()):
        return f"its positions are scaled by the longest answer's length ({', '.join(sorted(kinds))})"
    try:
        calls = _attention_calls(base)
    except PROBE_ERRORS as error:
        return f"its attention is not reached through transformers' interface ({_first_line(error)})"
    shapes = {(call.key_heads, call.head_dim) for call in calls.values()}
    if sorted(calls) != list(range(len(calls))) or len(shapes) != 1:
        return "its layers have attention of several shapes, or some have none"
    if (reason := _unseen_window(base.config.get_text_config(), calls)) is not None:
        return reason
    shape = StoreShape(len(calls), *shapes.pop())
    try:
        apart = _apart(model, base, shape)
    except PROBE_ERRORS as error:
        return f"it does not run on flat tokens ({_first_line(error)})"
    allowed = TOLERANCE.get(base.get_input_embeddings().weight.dtype, COARSE)
    return shape if apart <= allowed else f"on flat tokens it computes something else (logits differ by {apart:.0%})"


def _rope_kinds(config: Any) -> set[str]:
    """Of the positions' scaling; some families have several."""
    parameters = getattr(config, "rope_parameters", None) or {}
    several = [value for value in parameters.values() if isinstance(value, dict)]
    return {str(each.get("rope_type")) for each in [parameters, *several]}


def _attention_calls(base: Any) -> dict[int, AttentionCall]:
    """What each layer hands to its attention, by its number."""
    lean = {m.layer_idx: m.call for m in base.modules() if isinstance(m, LeanAttention)}
    ids = torch.tensor([PROBES[0]], device=base.get_input_embeddings().weight.device)
    with watch_attention(base) as watched:
        base(input_ids=ids, segments=Segments.of([ids.shape[1]], device=ids.device), use_cache=False)
    return lean | {module.layer_idx: call for module, call in watched.items()}


def _unseen_window(config: Any, calls: dict[int, AttentionCall]) -> str | None:
    """A window that lies in the mask alone would go unseen; a probe is too short to show it."""
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        windowed = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
        kinds = ["sliding_attention" if windowed else "full_attention"] * len(calls)
    if unknown := set(kinds) - {"full_attention", "sliding_attention"}:
        return f"it has layers of another kind ({', '.join(sorted(unknown))})"
    if any(kind == "sliding_attention" and calls[layer].sliding_window is None for layer, kind in enumerate(kinds)):
        return "its sliding window is in its mask alone"
    return None


def _apart(model: Any, base: Any, shape: StoreShape) -> float:
    """The largest distance between logits of prompts decoded together over a store, and of each computed whole."""
    rows = CachedRows(model, shape, len(PROBES), base=False, static=False)
    got = [rows.begin(PROBES)] + [rows.step([tokens[at] for tokens in STEPS]) for at in range(len(STEPS[0]))]
    together = torch.stack(got, dim=1)
    whole = [_whole(base, [*prompt, *tokens])[len(prompt) - 1 :] for prompt, tokens in zip(PROBES, STEPS)]
    return max(distance(mine, theirs) for mine, theirs in zip(together, whole))


def _whole(base: Any, ids: list[int]) -> Tensor:
    device = base.get_input_embeddings().weight.device
    logits: Tensor = base(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0]
    return logits


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
