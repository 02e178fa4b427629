"""Switches a model with an adapter to the lean path: grouped linears, own norms, MLPs and attention.

Nothing is looked up in a list of families. One short probe shows which linears share an input, what each attention hands
to its attention function and what every block computes; a block is swapped only where ours gives the same numbers.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.base.adapter import ADAPTER
from tunesmith.base.attention import watch_attention
from tunesmith.base.linear import LinearGroup, lean_layers, watch_inputs
from tunesmith.base.load import LINEARS
from tunesmith.base.mlp import is_gated_mlp, lean_mlp
from tunesmith.base.norm import swap_norms
from tunesmith.base.self_attention import AttentionCall, is_self_attention, lean_attention
from tunesmith.kernels.attention import Segments

PROBE_TOKENS = 6


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
    calls, attention, blocks = _observe(model, layers)
    groups = _group(layers, calls, dtype, keep)
    swapped = sum(_swap(model, name, attention.get(block.module), block) for name, block in blocks.items())
    how = "weights kept dequantised" if keep else "weights dequantised at each use"
    return f"{len(layers)} linears in {groups} groups, {how}; {swap_norms(peft_model)} norms, {swapped} blocks"


@dataclass
class _Block:
    """An attention or MLP of the model, with what the probe gave it and what came out."""

    module: nn.Module
    kwargs: dict[str, Any]
    output: Tensor


@torch.no_grad()
def _observe(model: Any, layers: dict[str, Any]) -> tuple[list[tuple[str, int]], dict[Any, AttentionCall], dict[str, _Block]]:
    """One short forward pass: calls of the linears, of the attention function, and what went in and out of the blocks."""
    embedding = model.get_input_embeddings().weight
    ids = torch.arange(3, 3 + PROBE_TOKENS, device=embedding.device).remainder(embedding.shape[0]).unsqueeze(0)
    positions = torch.arange(PROBE_TOKENS, device=embedding.device).unsqueeze(0)
    segments = Segments.of([PROBE_TOKENS], device=embedding.device)
    try:
        with watch_inputs(layers) as calls, watch_attention(model) as attention, _watch_blocks(model) as blocks:
            model.base_model(input_ids=ids, position_ids=positions, segments=segments, use_cache=False)
        return calls, attention, blocks
    except (TypeError, AttributeError, ValueError, RuntimeError):  # a family that passes no segments on to its attention
        with watch_inputs(layers) as calls, _watch_blocks(model) as blocks:
            model.base_model(input_ids=ids, use_cache=False)
        return calls, {}, blocks


@contextmanager
def _watch_blocks(model: nn.Module) -> Iterator[dict[str, _Block]]:
    """Within this block inputs and output of every attention and gated MLP are kept, by the module's name."""
    blocks: dict[str, _Block] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            given = dict(zip(("hidden_states", "position_embeddings"), args)) | kwargs
            blocks[name] = _Block(module, given, output[0] if isinstance(output, tuple) else output)

        return hook

    found = [(name, module) for name, module in model.named_modules() if is_gated_mlp(module) or is_self_attention(module)]
    handles = [module.register_forward_hook(note(name), with_kwargs=True) for name, module in found]
    try:
        yield blocks
    finally:
        for handle in handles:
            handle.remove()


def _swap(model: nn.Module, name: str, call: Any, block: _Block) -> int:
    """Put our block in the place of the model's own if it computes the same; 1 if so."""
    lean: nn.Module | None = None
    if is_gated_mlp(block.module):
        lean = lean_mlp(block.module, block.kwargs["hidden_states"], block.output)
    elif call is not None:
        lean = lean_attention(block.module, call, block.kwargs, block.output)
    if lean is None:
        return 0
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, lean.train(block.module.training))
    return 1


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
