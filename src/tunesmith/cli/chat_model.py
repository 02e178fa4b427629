"""What a talk is held with: a run, any folder with a LoRA adapter, or a base model alone."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.base.catalog import BUNDLED
from tunesmith.errors import RecipeError, near
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
    folder = Path(reference).expanduser()
    if (folder / "adapter_config.json").is_file():
        if settings:
            raise RecipeError(
                f"--{next(iter(settings)).replace('_', '-')} is for base models; {reference} is opened as it was trained.",
                "Leave it out.",
            )
        return folder
    if folder.is_dir() and ((folder / "run.yaml").is_file() or not _may_be_model(folder)):
        raise no_adapter(folder)
    if not folder.exists() and _means_a_run(reference):
        raise no_adapter(folder)
    recipe = Recipe.of({**settings, "model_name_or_path": reference})
    check_model(reference)
    return recipe


def _may_be_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or any(folder.glob("*.gguf"))


def _means_a_run(reference: str) -> bool:
    """Whether a name that stands for nothing here was meant for a run, though it may be a hub id: there are runs at this place, or
    one of that name where runs are written."""
    if reference in BUNDLED:
        return False
    if "/" in reference:
        return any(Path(reference).expanduser().parent.glob("*/run.yaml"))
    return near(reference, [Path(run).name for run in runs_near(Path(reference))]) is not None


def open_partner(found: Path | Recipe, note: Note) -> Partner:
    """The model that `find_partner` found. Raises ModelError or AdapterError if it cannot be loaded."""
    if isinstance(found, Recipe):
        from tunesmith.open_run import open_base

        return Partner(open_base(found, note), found.model_name_or_path, False)
    from tunesmith.api import load

    note(f"Loading {found}")
    return Partner(load(found).session, found.resolve().name, True)
