"""What a talk is held with: a run, any folder with a LoRA adapter, or a base model alone."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import RecipeError, RunError
from tunesmith.generate.session import Session
from tunesmith.recipe import Recipe

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
    beside = sorted(str(path.parent) for path in folder.parent.glob("*/run.yaml")) if not folder.exists() else []
    if beside:  # the name of a hub model has a slash, too: without runs at this place it may be one
        raise RunError(f"There is no run {reference}.", f"There are: {', '.join(beside[:5])}{', …' if beside[5:] else ''}")
    from tunesmith.open_run import open_base

    return Partner(open_base(Recipe.of({**settings, "model_name_or_path": reference}), note), reference, False)
