"""Switches a model with an adapter to the lean path: grouped linears, own norms, MLPs and attention.

Nothing is looked up in a list of families. One short probe shows which linears share an input, what each attention hands
to its attention function and what every block computes; a block is swapped only where ours gives the same numbers.
"""

from collections import Counter
from itertools import groupby
from typing import Any

import torch
from torch import nn

from tunesmith.base.adapter import ADAPTER
from tunesmith.base.attention import segments_attention, watch_attention
from tunesmith.base.linear import LinearGroup, lean_layers, watch_inputs
from tunesmith.base.load import LINEARS
from tunesmith.base.mlp import close, is_gated_mlp, lean_mlp
from tunesmith.base.norm import swap_norms
from tunesmith.base.self_attention import AttentionCall, is_self_attention, lean_attention
from tunesmith.kernels.segments import Segments

PROBE_TOKENS, PROBE_STRIDE = 12, 97
"""Tokens of a probe, and how far apart their positions are where the model has so many: rotation must show."""
LOUD = 30.0


def speed_up(peft_model: Any, dtype: torch.dtype, keep: bool) -> str:
    """Switch the adapter's linears to the lean path and the blocks around them to ours; says what was done.

    Args:
        keep: keep the frozen weights in the compute type instead of dequantising them at each use.
    """
    layers = {n: m for n, m in lean_layers(peft_model).items() if type(m.base_layer) in LINEARS}
    layers = {n: m for n, m in layers.items() if not m.lora_variant and not any(m.lora_bias.values())}
    if not layers or peft_model.peft_config[ADAPTER].bias != "none":
        return "peft's own layers (DoRA, 8-bit weights and trained biases have no lean path)"
    model = peft_model.get_base_model()
    calls, attention = _observe(model, layers)
    groups = _group(layers, calls, dtype, keep)
    blocks = _lean_blocks(model, attention)
    for name, block in blocks.items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, block)
    how = "weights kept dequantised" if keep else "weights dequantised at each use"
    return f"{len(layers)} linears in {groups} groups, {how}; {swap_norms(peft_model)} norms, {len(blocks)} blocks"


PROBE_ERRORS = (TypeError, AttributeError, ValueError, RuntimeError)
"""What a family raises that passes no segments on to its attention, or takes other arguments."""


def _probe(model: Any, segments: bool) -> None:
    """A short forward pass, as one segment or as a plain row."""
    embedding = model.get_input_embeddings().weight
    ids = torch.arange(3, 3 + PROBE_TOKENS, device=embedding.device).remainder(embedding.shape[0]).unsqueeze(0)
    flat: dict[str, Any] = {}
    if segments:
        flat["segments"] = Segments.of([PROBE_TOKENS], device=embedding.device)
        most = getattr(model.config.get_text_config(), "max_position_embeddings", None) or PROBE_TOKENS
        stride = max(1, min(PROBE_STRIDE, (most - 1) // PROBE_TOKENS))
        flat["position_ids"] = stride * torch.arange(PROBE_TOKENS, device=embedding.device).unsqueeze(0)
    model.base_model(input_ids=ids, use_cache=False, **flat)


@torch.no_grad()
def _observe(model: Any, layers: dict[str, Any]) -> tuple[list[tuple[str, int]], dict[Any, AttentionCall]]:
    """Calls of the linears with the identity of their input, and what each attention hands to its attention function."""
    try:
        with watch_inputs(layers) as calls, watch_attention(model) as attention:
            _probe(model, segments=True)
        return calls, attention
    except PROBE_ERRORS:
        with watch_inputs(layers) as calls:
            _probe(model, segments=False)
        return calls, {}


@torch.no_grad()
def _lean_blocks(model: Any, attention: dict[Any, AttentionCall]) -> dict[str, nn.Module]:
    """Our blocks for those of the model's own that compute the same, by name. Each is compared while the model's own has
    just run, when its weights are at hand even if layers are streamed."""
    found: dict[str, nn.Module] = {}

    def compare(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            given = dict(zip(("hidden_states", "position_embeddings"), args)) | kwargs
            # Once more with large inputs: a clamp somewhere inside shows only there.
            loud = given | {"hidden_states": LOUD * given["hidden_states"]}
            lean: nn.Module | None = None
            if is_gated_mlp(module):
                lean = lean_mlp(module, given["hidden_states"], output)
                if lean is not None and not close(lean(loud["hidden_states"]), module.forward(loud["hidden_states"])):
                    lean = None
            elif module in attention:
                lean = lean_attention(module, attention[module], given, output[0])
                if lean is not None and lean_attention(module, attention[module], loud, module.forward(**loud)[0]) is None:
                    lean = None
            if lean is not None:
                found[name] = lean.train(module.training)

        return hook

    blocks = [(name, module) for name, module in model.named_modules() if is_gated_mlp(module) or is_self_attention(module)]
    handles = [module.register_forward_hook(compare(name), with_kwargs=True) for name, module in blocks]
    try:
        with segments_attention(model):
            _probe(model, segments=True)
    except PROBE_ERRORS:
        if not attention:  # MLPs alone can be compared
            _probe(model, segments=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _group(layers: dict[str, Any], calls: list[tuple[str, int]], dtype: torch.dtype, keep: bool) -> int:
    """Group neighbouring calls that read the same input; a layer called more than once stays peft's own."""
    times = Counter(name for name, _ in calls)
    once = [call for call in calls if times[call[0]] == 1]
    groups = 0
    for _, run in groupby(once, key=lambda call: (call[1], layers[call[0]].scaling[ADAPTER])):
        members = [layers[name] for name, _ in run]
        group = LinearGroup(members, ADAPTER, dtype, keep, salt=groups)
        for number, layer in enumerate(members):
            layer.group, layer.member = group, number
        groups += 1
    return groups
