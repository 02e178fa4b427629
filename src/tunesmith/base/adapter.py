"""Attach a fresh LoRA adapter, or open a saved one and check that nothing is left out."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tunesmith.base.adapter_config import is_called, rank_of, read_adapter_config
from tunesmith.base.default_dtype import fp32_by_default
from tunesmith.base.linear import CUSTOM_MODULES
from tunesmith.base.load import decoder_linears
from tunesmith.errors import AdapterError, nearest
from tunesmith.recipe import Recipe

ADAPTER = "default"

PEFT_ASKS = "`is_gradient_checkpointing` is deprecated"
"""What transformers answers when peft asks by an old name: nothing that a user could do anything about."""


def without_adapter(model: Any) -> Any:
    """The transformers model itself, of one with an adapter or without; an adapter stays in its layers."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def target_names(model: Any, wanted: str | list[str]) -> list[str]:
    """Names of the layers that get an adapter: all linears of the decoder, found by structure, or those wanted.

    Raises:
        AdapterError: a wanted name matches no linear layer, or the model has none.
    """
    return names_among(list(decoder_linears(model)), wanted)


def names_among(linears: Sequence[str], wanted: str | list[str]) -> list[str]:
    """`target_names` of a model with these linears, by their full names."""
    leaves = sorted({name.rsplit(".", 1)[-1] for name in linears})
    if not leaves:
        raise AdapterError("The model has no linear layer to adapt.", "Use a transformer decoder.")
    if isinstance(wanted, str):
        return leaves
    for target in wanted:
        if not any(is_called(name, target) for name in linears):
            raise AdapterError(
                f"lora_target_modules: no linear layer is called {target!r}{nearest(target, leaves)}.",
                f"There are {', '.join(leaves)}; or leave it at all-linear.",
            )
    return list(wanted)


@fp32_by_default()
def attach(model: Any, recipe: Recipe, base: str, revision: str | None) -> Any:
    """The model with a fresh adapter, a ``PeftModel``. The seed is set before the adapter is drawn.

    Args:
        base: what the adapter names as its base model.

    Raises:
        AdapterError: the model has an adapter already, or the targets match nothing.
    """
    from peft import LoraConfig, get_peft_model

    if getattr(model, "peft_config", None):
        raise AdapterError("The model has an adapter already.", "Merge it first, or start from the plain base model.")
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=recipe.lora_r,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=target_names(model, recipe.lora_target_modules),
        bias=recipe.lora_bias,
        use_rslora=recipe.use_rslora,
        use_dora=recipe.use_dora,
    )
    config._register_custom_module(CUSTOM_MODULES)
    torch.manual_seed(recipe.seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")
        warnings.filterwarnings("ignore", message=PEFT_ASKS)
        peft_model = get_peft_model(model, config, autocast_adapter_dtype=True)
    config.base_model_name_or_path, config.revision = base, revision
    return peft_model


@fp32_by_default()
def open_adapter(model: Any, folder: Path) -> Any:
    """The model with the adapter of a folder, saved by anyone's peft.

    Raises:
        AdapterError: not an adapter folder, missing or unexpected tensors, wrong shapes, or values that are not finite.
    """
    from peft import PeftModel
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / "adapter_config.json").is_file():
        raise AdapterError(f"{folder} holds no adapter: it has no adapter_config.json.", "Give a run's folder.")
    try:
        weights = folder / "adapter_model.safetensors"
        if weights.exists() and not weights.is_file():  # to open a pipe would be to wait
            raise OSError(f"{weights.name} is not a file")
        tensors = load_file(weights)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, MemoryError, SafetensorError) as error:
        raise AdapterError(f"{folder} holds no readable LoRA adapter: {error}", "Use the folder of a finished run.") from error
    config = read_adapter_config(folder, rank_of(tensors))
    config._register_custom_module(CUSTOM_MODULES)
    config.inference_mode = True
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Found missing adapter keys.*")
        warnings.filterwarnings("ignore", message=PEFT_ASKS)
        warnings.filterwarnings("error", message=".*no parameter was matched")
        try:
            peft_model = PeftModel(model, config, ADAPTER, autocast_adapter_dtype=True)
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, RuntimeWarning) as error:  # no such targets
            raise AdapterError(
                f"The adapter in {folder} does not fit: {error}", "Check that it belongs to this base model."
            ) from error
    _set_tensors(peft_model, tensors, folder)
    peft_model.eval()
    return peft_model


def _set_tensors(peft_model: Any, tensors: dict[str, torch.Tensor], folder: Path) -> None:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    # save_embedding_layers would ask the hub about the base model; embeddings are never trained here.
    expected = get_peft_model_state_dict(peft_model, adapter_name=ADAPTER, save_embedding_layers=False)
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    odd = [name for name in expected.keys() & tensors.keys() if expected[name].shape != tensors[name].shape]
    bad = [name for name in tensors if not bool(torch.isfinite(tensors[name]).all())]
    wrong = {"misses": missing, "has, unlike this base model,": extra, "has in another shape": odd, "is not finite in": bad}
    for what, names in wrong.items():
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise AdapterError(f"The adapter in {folder} {what} {names[0]}{more}.", "Check that it belongs to this base model.")
    set_peft_model_state_dict(peft_model, tensors, adapter_name=ADAPTER)


def adapter_parameters(peft_model: Any) -> dict[str, torch.nn.Parameter]:
    """The trainable parameters by name."""
    return {name: p for name, p in peft_model.named_parameters() if p.requires_grad}
