"""What a talk is held with: a run, any folder with a LoRA adapter, or a base model alone."""

from collections.abc import Callable
from dataclasses import dataclass
from os.path import expanduser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import ModelError, RecipeError, near
from tunesmith.places import check_model, no_adapter, runs_near
from tunesmith.recipe import Recipe

if TYPE_CHECKING:
    from tunesmith.generate.session import Session

Note = Callable[[str], None]


@dataclass(frozen=True)
class Partner:
    """session: the model. name: what to call it. adapter: whether it has one that was trained."""

    session: "Session"
    name: str
    adapter: bool


def find_partner(reference: str, settings: dict[str, Any]) -> Path | Recipe:
    """The folder of the adapter, or the recipe of the base model, that a user means.

    Args:
        reference: the folder of a run or adapter, or a base model as `train` takes it. settings: of a base model, by their
            names in `Recipe`; an adapter's folder says how its base is loaded.

    Raises:
        RunError: there is no such run, or a folder holds neither. ModelError: see `check_model`.
    """
    folder = Path(expanduser(reference))
    if (folder / "adapter_config.json").is_file():
        if settings:
            raise RecipeError(
                f"--{next(iter(settings)).replace('_', '-')} is for base models; {reference} is opened as it was trained.",
                "Leave it out.",
            )
        return folder
    if folder.is_dir() and ((folder / "run.yaml").is_file() or not _may_be_model(folder)):
        raise no_adapter(folder)
    if not folder.exists() and "/" in reference and any(folder.parent.glob("*/run.yaml")):
        raise no_adapter(folder)  # in a folder of runs, though it may be a hub id
    recipe = Recipe.of({**settings, "model_name_or_path": reference})
    try:
        check_model(reference)
    except ModelError as error:
        if not folder.exists() and near(reference, [Path(run).name for run in runs_near(folder)]):
            raise no_adapter(folder) from error
        raise
    return recipe


def _may_be_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or any(folder.glob("*.gguf"))


def open_partner(found: Path | Recipe, note: Note) -> Partner:
    """The model that `find_partner` found. Raises ModelError or AdapterError if it cannot be loaded."""
    if isinstance(found, Recipe):
        from tunesmith.open_run import open_base

        return Partner(open_base(found, note), found.model_name_or_path, False)
    from tunesmith.api import load

    note(f"Loading {found}")
    return Partner(load(found).session, found.resolve().name, True)
