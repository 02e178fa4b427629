"""What a talk is held with: a run, any folder with a LoRA adapter, or a base model alone."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import RecipeError, RunError
from tunesmith.generate.session import Session

Note = Callable[[str], None]


@dataclass(frozen=True)
class Partner:
    """session: the model. name: what to call it. adapter: whether it has one that was trained."""

    session: Session
    name: str
    adapter: bool


def open_partner(reference: str, settings: dict[str, Any], note: Note) -> Partner:
    """The model a user means.

    Args:
        reference: the folder of a run or adapter, or a base model as `train` takes it. settings: of a base model, by their
            names in `Recipe`; an adapter's folder says how its base is loaded.

    Raises:
        RunError: a folder that holds neither. ModelError, AdapterError: it cannot be loaded.
    """
    folder = Path(reference).expanduser()
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if "adapter_config.json" in there:
        if settings:
            raise RecipeError(
                f"--{next(iter(settings)).replace('_', '-')} is for base models; {reference} is opened as it was trained.",
                "Leave it out.",
            )
        from tunesmith.api import load

        note(f"Loading {reference}")
        run = load(folder)
        return Partner(run.session, folder.resolve().name, True)
    if "run.yaml" in there:
        raise RunError(f"{reference} holds no adapter yet: the run is not finished.", f"Go on: tunesmith resume {reference}")
    if folder.is_dir() and "config.json" not in there and not any(name.endswith(".gguf") for name in there):
        raise RunError(
            f"{reference} holds no adapter and no model.", "Give the folder of a finished run, such as runs/smollm2-135m-yoda-1."
        )
    return Partner(_open_base(reference, settings, note), reference, False)


def _open_base(reference: str, settings: dict[str, Any], note: Note) -> Session:
    """A base model in 4 bits, as training would load it. An adapter that nothing was trained into, which is never asked, puts it
    on the path that tuned models take."""
    import torch

    from tunesmith.base.adapter import attach
    from tunesmith.base.catalog import resolve
    from tunesmith.base.lean import speed_up
    from tunesmith.base.load import choose_compute, load_model
    from tunesmith.base.tokenizer import load_tokenizer
    from tunesmith.data.render import Renderer
    from tunesmith.plan.memory import available_bytes, footprint, shape_of
    from tunesmith.recipe import Recipe

    recipe = Recipe.of({**settings, "model_name_or_path": reference, "lora_r": 1, "offload_base": "never"})
    compute = choose_compute(recipe)
    source = resolve(recipe.model_name_or_path, note)
    renderer = Renderer(load_tokenizer(source, recipe.chat_template))
    shape, room = shape_of(source), 0.8 * available_bytes(compute.device)
    note(f"Loading {source.base}")
    model = attach(load_model(source, recipe, compute), recipe, source.base, source.revision).eval()
    torch.seed()  # attaching seeds the generator, and answers are to differ from talk to talk
    stored = footprint(shape, 4 if recipe.load_in_4bit else 0, compute.dtype.itemsize)
    kept = shape.linear_weights * compute.dtype.itemsize
    speed_up(model, compute.dtype, not recipe.load_in_4bit or kept + stored < room)
    return Session(model, renderer)
