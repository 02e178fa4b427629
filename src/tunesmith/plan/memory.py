"""Bytes a run will take, from the model's config alone: no weight is loaded or downloaded."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tunesmith.base.adapter_config import is_called
from tunesmith.base.catalog import ModelSource
from tunesmith.base.context import causal_config, positions_of
from tunesmith.base.load import decoder_linears, model_error
from tunesmith.base.stream import own_embedding
from tunesmith.kernels.cross_entropy import BLOCK_COLUMNS, BLOCK_ROWS
from tunesmith.recipe import Recipe

NF4_BLOCK, NF4_GROUP = 64, 256
"""Weights that share a constant, and constants that share a second one (Dettmers et al. 2023, arXiv 2305.14314)."""

BUILD_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, NotImplementedError)
"""What transformers raises for a config that it cannot build a model of, or whose embedding it cannot tell."""


@dataclass(frozen=True)
class Shape:
    """What of a model decides its memory and time. All counts are of elements.

    linear_weights: of decoder linears. other_parameters: embeddings, norms, biases, head. embedding: of the input embedding,
    where the head has a matrix of its own. buffer_bytes: as transformers counts them. linears: name, in and out features of
    each. hidden, vocab, layers, positions, inner: from the config. query_width, key_width: of all query heads and of all key
    heads. rotary_width: of one head.
    """

    linear_weights: int
    other_parameters: int
    buffer_bytes: int
    linears: tuple[tuple[str, int, int], ...]
    hidden: int
    vocab: int
    layers: int
    positions: int
    query_width: int = 0
    key_width: int = 0
    inner: int = 0
    rotary_width: int = 0
    embedding: int = 0

    @property
    def parameters(self) -> int:
        return self.linear_weights + self.other_parameters

    def adapted(self, targets: str | list[str]) -> list[tuple[str, int, int]]:
        """The linears that get an adapter, as a recipe names them: those that a target calls by their name, or "all-linear"."""
        return [one for one in self.linears if isinstance(targets, str) or any(is_called(one[0], target) for target in targets)]

    def trainable(self, r: int, targets: str | list[str] = "all-linear") -> int:
        """LoRA parameters at rank r, ``r (in + out)`` a linear that is `adapted`."""
        return sum(r * (i + o) for _, i, o in self.adapted(targets))


def shape_of(source: ModelSource) -> Shape:
    """The shape of a model, built on the meta device.

    Raises:
        ModelError: there is no such model or its config cannot be read.
    """
    config = causal_config(source)
    try:
        return shape_of_config(config)
    except BUILD_ERRORS as error:
        raise model_error(source, error) from error


def shape_of_config(config: Any) -> Shape:
    """The shape a transformers config describes."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    linears = decoder_linears(model)
    counted = {id(m.weight) for m in linears.values()}
    other = sum(p.nelement() for p in model.parameters() if id(p) not in counted)
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", None) or 1
    head = getattr(text, "head_dim", None) or text.hidden_size // heads
    return Shape(
        linear_weights=sum(_count(m) for m in linears.values()),
        other_parameters=other,
        buffer_bytes=sum(b.nelement() * b.element_size() for b in model.buffers()),
        linears=tuple((name, m.in_features, m.out_features) for name, m in linears.items()),  # type: ignore[misc]
        hidden=text.hidden_size,
        vocab=text.vocab_size,
        layers=text.num_hidden_layers,
        positions=positions_of(config),
        query_width=heads * head,
        key_width=(getattr(text, "num_key_value_heads", None) or heads) * head,
        inner=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        rotary_width=head,
        embedding=_count_embedding(model),
    )


def _count(linear: nn.Module) -> int:
    return int(linear.in_features) * int(linear.out_features)  # type: ignore[arg-type]


def _count_embedding(model: Any) -> int:
    weight = own_embedding(model)
    return 0 if weight is None else weight.nelement()


def footprint(shape: Shape, bits: int, element_bytes: int) -> int:
    """What transformers' ``get_memory_footprint()`` says after loading: packed linears, all else in the load type.

    Args:
        bits: 4, 8, or 0 for not quantised. element_bytes: bytes of the load type.
    """
    linear = {4: shape.linear_weights // 2, 8: shape.linear_weights, 0: shape.linear_weights * element_bytes}[bits]
    return linear + shape.other_parameters * element_bytes + shape.buffer_bytes


def kbit_prepared_footprint(shape: Shape, r: int) -> int:
    """The same after peft's ``prepare_model_for_kbit_training`` and LoRA: all that is not 4-bit in fp32."""
    return shape.linear_weights // 2 + 4 * (shape.other_parameters + shape.trainable(r)) + shape.buffer_bytes


@dataclass(frozen=True)
class Memory:
    """Predicted bytes at the peak of a step. stored: the weights as loaded. kept: dequantised copies. adapter: its fp32
    weights, gradients and optimizer state. activations: saved for backward, and the logits in flight."""

    stored: int
    kept: int
    adapter: int
    activations: int

    @property
    def total(self) -> int:
        return self.stored + self.kept + self.adapter + self.activations


def constants_bytes(shape: Shape, recipe: Recipe) -> int:
    """The quantisation constants of 4-bit weights, which transformers' footprint leaves out."""
    if not recipe.load_in_4bit:
        return 0
    blocks = shape.linear_weights // NF4_BLOCK
    return blocks + 4 * blocks // NF4_GROUP if recipe.bnb_4bit_use_double_quant else 4 * blocks


def predict_memory(shape: Shape, recipe: Recipe, tokens: int, element_bytes: int, keep: bool) -> Memory:
    """Memory of a step over ``tokens`` flat tokens on a CPU."""
    bits = 4 if recipe.load_in_4bit else 8 if recipe.load_in_8bit else 0
    kept = shape.linear_weights * element_bytes if keep and bits == 4 else 0
    # Saved for backward: every linear's output (an input of the next operation), twice the inner width for the gate's
    # product, and a handful of hidden-size tensors around norms and residuals.
    per_token = sum(out for _, _, out in shape.linears) + shape.layers * 6 * shape.hidden
    per_token += sum(i for _, i, _ in shape.linears) // 2
    layers = 2 if recipe.gradient_checkpointing is True else shape.layers
    activations = tokens * per_token * element_bytes * layers // shape.layers
    if recipe.gradient_checkpointing is True:
        activations += tokens * shape.hidden * element_bytes * shape.layers
    logits = 2 * 4 * min(tokens, BLOCK_ROWS) * BLOCK_COLUMNS + 3 * 4 * min(tokens, BLOCK_ROWS) * shape.hidden
    return Memory(
        stored=footprint(shape, bits, element_bytes) + constants_bytes(shape, recipe),
        kept=kept,
        adapter=16 * shape.trainable(recipe.lora_r, recipe.lora_target_modules),
        activations=activations + logits,
    )
