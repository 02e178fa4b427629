"""A run's folder, any with a LoRA adapter, or a base alone, as something that can be used: recipe, renderer, model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tunesmith.base.adapter import attach, open_adapter
from tunesmith.base.catalog import ModelSource, resolve
from tunesmith.base.lean import speed_up
from tunesmith.base.load import ComputeType, choose_compute, load_model
from tunesmith.base.tokenizer import load_tokenizer
from tunesmith.data.render import Renderer
from tunesmith.errors import AdapterError
from tunesmith.export.manifest import read_manifest
from tunesmith.export.runtimes import read_config
from tunesmith.generate.session import Session
from tunesmith.plan.machine import available_bytes
from tunesmith.plan.memory import Shape, footprint, shape_of
from tunesmith.recipe import Recipe


def open_session(folder: Path, lean: bool = True) -> Session:
    """Load the base a run was trained on, and its adapter; on the fast path, or with peft's own layers.

    Raises:
        AdapterError: the adapter there is not of this run's base, or does not fit it.
    """
    _check_base(folder)
    recipe = recipe_of(folder)
    source, renderer = resolve(recipe.model_name_or_path), open_renderer(folder, recipe)
    compute = choose_compute(recipe)
    base, keep = _load_to_answer(recipe, source, shape_of(source), compute)
    model = open_adapter(base, folder)
    if lean:
        speed_up(model, compute.dtype, keep)
    return Session(model, renderer)


def open_base(recipe: Recipe, note: Callable[[str], None]) -> Session:
    """A base model alone. An adapter that nothing was trained into, which is never asked, puts it on the path that tuned models
    take. note: told what takes its time."""
    source = resolve(recipe.model_name_or_path, note)
    compute, shape = choose_compute(recipe), shape_of(source)
    recipe = _as_stored(recipe, shape, compute, note)
    renderer = Renderer(load_tokenizer(source, recipe.chat_template))
    note(f"Loading {source.base}")
    base, keep = _load_to_answer(recipe, source, shape, compute)
    model = attach(base, recipe.model_copy(update={"lora_r": 1}), source.base, source.revision).eval()
    torch.seed()  # attaching seeds the generator, and answers are to differ from talk to talk
    speed_up(model, compute.dtype, keep)
    return Session(model, renderer)


def _as_stored(recipe: Recipe, shape: Shape, compute: ComputeType, note: Callable[[str], None]) -> Recipe:
    """Not in fewer bits than the model has, unless that is asked for or memory is short: what an adapter changed, if it was
    merged into the model, can be less than the rounding to 4 bits."""
    if {"load_in_4bit", "load_in_8bit"} & recipe.model_fields_set:
        return recipe
    stored = footprint(shape, 0, compute.dtype.itemsize)
    if stored < 0.8 * available_bytes(compute.device):
        return recipe.model_copy(update={"load_in_4bit": False})
    note(f"In 4 bits, for it would take {stored / 1e9:.1f} GB: if an adapter was merged into it, its change may be lost in them")
    return recipe


def _check_base(folder: Path) -> None:
    """Raises AdapterError if the adapter in a run's folder says that it is of another base than the run was trained on."""
    trained = read_manifest(folder).get("base") if (folder / "run.yaml").is_file() else None
    named = read_config(folder).get("base_model_name_or_path") if trained else None
    if trained != named:
        raise AdapterError(
            f"The adapter in {folder} is not the one that was trained there: it names {named!r} as its base, and this run was "
            f"trained on {trained!r} (manifest.json).",
            "Put the run's own adapter back; or if both are the same model, write the run's name of it into adapter_config.json.",
        )


def _load_to_answer(recipe: Recipe, source: ModelSource, shape: Shape, compute: ComputeType) -> tuple[Any, bool]:
    """The base, and whether its weights can be kept dequantised. How it was trained was decided by the memory of training; to
    answer takes less."""
    room = 0.8 * available_bytes(compute.device)
    stored = footprint(shape, 4 if recipe.load_in_4bit else 0, compute.dtype.itemsize)
    stream = recipe.load_in_4bit and compute.device.type == "cuda" and stored > room
    recipe = recipe.model_copy(update={"offload_base": "always" if stream else "never"})
    kept = shape.linear_weights * compute.dtype.itemsize
    keep = not recipe.load_in_4bit or (not stream and kept + stored < room)
    return load_model(source, recipe, compute), keep


def open_renderer(folder: Path, recipe: Recipe) -> Renderer:
    """Of the tokenizer a run was trained with, template included, or its base's."""
    own = (folder / "tokenizer_config.json").is_file()
    at_hand = ModelSource(str(folder), None, str(folder)) if own else resolve(recipe.model_name_or_path)
    return Renderer(load_tokenizer(at_hand, None if own else recipe.chat_template))


def recipe_of(folder: Path) -> Recipe:
    """The recipe of a run, or of any adapter's folder what can be told of it."""
    if (folder / "run.yaml").is_file():
        return Recipe.of(Recipe.read(folder / "run.yaml"))
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        base, revision = config["base_model_name_or_path"], config.get("revision")
    except (OSError, ValueError, KeyError) as error:
        raise AdapterError(f"{folder}/adapter_config.json does not name a base model.", "Add base_model_name_or_path.") from error
    if not isinstance(base, str) or not base:
        raise AdapterError(f"{folder}/adapter_config.json does not name a base model.", "Add base_model_name_or_path.")
    return Recipe.of({"model_name_or_path": f"{base}@{revision}" if revision and not Path(base).exists() else base})
