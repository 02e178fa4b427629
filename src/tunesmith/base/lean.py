"""Switches a model with an adapter to the lean path: grouped linears, own norms, MLPs and attention.

Nothing is looked up in a list of families. One short probe shows which linears share an input, what each attention hands
to its attention function and what every block computes; a block is swapped only where ours gives the same numbers.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.base.adapter import ADAPTER
from tunesmith.base.attention import segments_attention, watch_attention
from tunesmith.base.layer import is_pre_norm_layer, labelled_states, last_layer, layer_forward, switch
from tunesmith.base.linear import LinearGroup, lean_layers, watch_inputs
from tunesmith.base.load import LINEARS
from tunesmith.base.mlp import close, is_gated_mlp, lean_mlp
from tunesmith.base.norm import swap_norms
from tunesmith.base.self_attention import AttentionCall, LeanAttention, is_self_attention, same_attention
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
    swapped = {name: block for name, block in blocks.items() if block is not None}
    for name, block in swapped.items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, block)
    how = "weights kept dequantised" if keep else "weights dequantised at each use"
    norms, decoder_layers = swap_norms(peft_model), _switch_layers(model) if attention else 0
    parts = f"{norms} norms, {decoder_layers} layers, {len(swapped)} of {len(blocks)} blocks"
    return f"{len(layers)} linears in {groups} groups, {how}; {parts}"


PROBE_ERRORS = (TypeError, AttributeError, ValueError, RuntimeError)
"""What a family raises that passes no segments on to its attention, or takes other arguments."""


def _probe(model: Any, segments: bool) -> None:
    """A short forward pass, as one segment or as a plain row."""
    inputs = _probe_inputs(model)
    model.base_model(**(inputs if segments else {"input_ids": inputs["input_ids"]}), use_cache=False)


def _probe_inputs(model: Any) -> dict[str, Any]:
    """One segment of a few tokens, far apart."""
    embedding = model.get_input_embeddings().weight
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None) or PROBE_TOKENS
    stride = max(1, min(PROBE_STRIDE, (most - 1) // PROBE_TOKENS))
    return {
        "input_ids": torch.arange(3, 3 + PROBE_TOKENS, device=embedding.device).remainder(embedding.shape[0]).unsqueeze(0),
        "position_ids": stride * torch.arange(PROBE_TOKENS, device=embedding.device).unsqueeze(0),
        "segments": Segments.of([PROBE_TOKENS], device=embedding.device),
    }


def _probe_with(model: Any, hooks: Mapping[nn.Module, Callable[..., None]], segments: bool = True) -> bool:
    """A probe during which a hook sees each of these modules' arguments and output; False if the family cannot take it."""
    handles = [module.register_forward_hook(hook, with_kwargs=True) for module, hook in hooks.items()]
    try:
        with segments_attention(model) if segments else nullcontext():
            _probe(model, segments)
        return True
    except PROBE_ERRORS:
        if not segments:
            raise
        return False
    finally:
        for handle in handles:
            handle.remove()


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
def _lean_blocks(model: Any, attention: dict[Any, AttentionCall]) -> dict[str, nn.Module | None]:
    """For each of the model's own blocks ours if it computes the same, else None, by name. Each is compared while the model's
    own has just run, when its weights are at hand even if layers are streamed."""
    found: dict[str, nn.Module | None] = {}

    def compare(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            given = dict(zip(("hidden_states", "position_embeddings"), args)) | kwargs
            lean = _lean_mlp(module, given, output) if is_gated_mlp(module) else _lean_attention(module, attention, given, output)
            found[name] = lean.train(module.training) if lean is not None else None

        return hook

    blocks = {name: module for name, module in model.named_modules() if is_gated_mlp(module) or is_self_attention(module)}
    hooks = {module: compare(name) for name, module in blocks.items()}
    if not _probe_with(model, hooks) and not attention:
        _probe_with(model, hooks, segments=False)  # MLPs alone can be compared
    return {name: found.get(name) for name in blocks}


def _lean_mlp(mlp: nn.Module, given: dict[str, Any], output: Tensor) -> nn.Module | None:
    """Ours for this MLP: the same numbers, and once more for large inputs, where a clamp somewhere inside would show."""
    x = given["hidden_states"]
    lean = lean_mlp(mlp, x, output)
    return lean if lean is not None and close(lean(LOUD * x), mlp.forward(LOUD * x)) else None


def _lean_attention(module: nn.Module, attention: dict[Any, AttentionCall], given: dict[str, Any], output: Any) -> nn.Module | None:
    """Ours for this attention: the same numbers, and once more for large inputs. There every token stands alone: scores of
    hundreds would say more about rounding than about what is computed."""
    if module not in attention:
        return None
    x = given["hidden_states"]
    alone = Segments.of([1] * x.shape[1], device=x.device)
    lean = LeanAttention(module, attention[module])
    loud = given | {"hidden_states": LOUD * x, "segments": alone}
    if not same_attention(lean, module, given, output[0]):
        return None
    return lean if same_attention(lean, module, loud, module.forward(**loud)[0]) else None


@torch.no_grad()
def _switch_layers(model: Any) -> int:
    """Switch every decoder layer that our forward serves to it; returns how many."""
    same: dict[nn.Module, bool] = {}

    def compare(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = dict(kwargs)
        x = args[0] if args else given.pop("hidden_states")
        loud = layer.forward(LOUD * x, **given)
        same[layer] = isinstance(output, Tensor) and all(
            close(layer_forward(layer, a, given), b) for a, b in ((x, output), (LOUD * x, loud))
        )

    layers = [module for module in model.modules() if is_pre_norm_layer(module)]
    if not _probe_with(model, dict.fromkeys(layers, compare)):
        return 0
    switched = [layer for layer in layers if same.get(layer, False)]
    for layer in switched:
        switch(layer)
    _pick_rows(model)
    return len(switched)


def _pick_rows(model: Any) -> None:
    """Let the last layer compute only the rows asked for, if the decoder's output is then those rows of the whole."""
    decoder, inputs = model.base_model, _probe_inputs(model)
    last, index = last_layer(decoder), torch.arange(PROBE_TOKENS - 1, 0, -3, device=inputs["input_ids"].device)
    if last is None:
        return
    with segments_attention(model):
        expected = labelled_states(decoder, index, **inputs)
        try:
            last.picks_rows = True
            last.picks_rows = close(labelled_states(decoder, index, **inputs), expected)
        except PROBE_ERRORS:  # something after the layer wants all rows
            last.picks_rows = False


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
