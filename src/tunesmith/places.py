"""What a user names on this machine: model, data, the folder to write, a run. Looked for before libraries are imported that take
seconds, so that a mistyped name is told at once; whoever opens them later asks here, too."""

from itertools import count
from pathlib import Path

from tunesmith.base.catalog import data_not_model, find, resolve
from tunesmith.base.hub_model import check_on_hub
from tunesmith.base.tokenizer import template_named
from tunesmith.data.held_out import brings_held_out
from tunesmith.data.mixture import parts_of
from tunesmith.data.sources import check_name, is_bundled
from tunesmith.errors import RunError
from tunesmith.recipe import Recipe
from tunesmith.training.lock import holder_of

EXAMPLE = "Give the folder of a finished run, such as runs/smollm2-135m-yoda-1."


def check_recipe(recipe: Recipe, *, begins: bool = True) -> None:
    """Look for everything a recipe names. begins: a run will be begun, whose folder must be free, and for which there must be
    weights.

    Raises:
        RunError: see `check_output`. ModelError, DataError: there is no such model, template or data, or they are not of a kind
            that is read.
    """
    if begins:
        check_output(recipe)
    check_model(recipe.model_name_or_path, weights=begins)
    if recipe.chat_template is not None:
        template_named(recipe.chat_template)
    for part in parts_of(recipe):
        check_name(part.name, part.split, part.config)
    if recipe.eval_dataset:
        check_name(recipe.eval_dataset, "train")


def check_model(reference: str, weights: bool = True) -> None:
    """Raises ModelError if there is no such model here, nor on the hub; no weight is read, and no GGUF file dequantised. weights:
    see `find`."""
    if find(reference, weights) is None:
        if is_bundled(reference):
            raise data_not_model(reference)
        check_on_hub(resolve(reference))


def check_output(recipe: Recipe) -> None:
    """Raises RunError if the output folder holds anything already, or another process is about to write into it."""
    folder = Path(recipe.output_dir) if recipe.output_dir else None
    if folder is not None and (holder := holder_of(folder)):
        raise RunError(f"{folder} is in use by {holder}.", "Wait for it to end, or give another --output-dir.")
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(
            f"{folder} is not empty: it holds another run or other files.",
            "Give another --output-dir, or move it away"
            + (f"; `tunesmith resume {folder}` goes on with it." if (folder / "run.yaml").is_file() else "."),
        )


def free_folder(name: Path) -> Path:
    """The first of name-1, name-2, … that is not there yet."""
    return next(folder for number in count(1) if not (folder := name.with_name(f"{name.name}-{number}")).exists())


def check_adapter(folder: Path) -> None:
    """Raises RunError if no adapter is in the folder: not one of a run, nor one that peft saved."""
    if not (folder / "adapter_config.json").is_file():
        raise no_adapter(folder)


def check_held_out(folder: Path) -> None:
    """Raises RunError if a run says that it held no rows out."""
    if (folder / "run.yaml").is_file():
        recipe = Recipe.of(Recipe.read(folder / "run.yaml"))
        if not recipe.val_size and not brings_held_out(recipe):
            raise held_none(folder)


def held_none(folder: Path) -> RunError:
    """That a run has no rows to be judged by."""
    return RunError(f"{folder} held no rows out.", own_rows(folder))


def own_rows(folder: Path) -> str:
    """What to type where a run's held-out rows cannot be used."""
    return f"Give rows of your own: tunesmith compare {folder} FILE."


def check_run(folder: Path) -> None:
    """Raises RunError if the folder is not that of a run, finished or not."""
    if folder.exists() and not (folder / "run.yaml").is_file():
        raise RunError(f"{folder} holds no run: it has no run.yaml.", EXAMPLE.replace(" finished", ""))
    if not folder.exists():
        raise no_adapter(folder)


def check_gguf_name(out: str | Path) -> None:
    """Raises RunError if a GGUF file of this name would not be known for what it is."""
    if not str(out).lower().endswith(".gguf"):
        folder = str(out).endswith("/") or Path(out).is_dir()
        name = str(Path(out) / "out.gguf") if folder else f"{out}.gguf"
        raise RunError(f"{out} does not end in .gguf, by which other programs know such a file.", f"Name it {name}")


def no_adapter(folder: Path) -> RunError:
    """What stands at a place where an adapter should be, and what to name instead."""
    if not folder.exists():
        runs = runs_near(folder)
        fix = f"There are: {', '.join(runs[:5])}{', …' if runs[5:] else ''}" if runs else EXAMPLE
        return RunError(f"There is no run {folder}.", fix)
    if not folder.is_dir():
        beside = (folder.parent / "adapter_config.json").is_file()
        return RunError(f"{folder} is a file, not the folder of a run.", f"Name its folder: {folder.parent}" if beside else EXAMPLE)
    if (folder / "run.yaml").is_file():
        return RunError(f"{folder} holds no adapter yet: the run is not finished.", f"Go on: tunesmith resume {folder}")
    if (folder / "config.json").is_file():
        return RunError(f"{folder} holds a model and no adapter.", EXAMPLE)
    return RunError(f"{folder} holds no adapter and no model.", EXAMPLE)


def runs_near(folder: Path) -> list[str]:
    """The runs beside a folder and, where runs are written by default, in ``runs``."""
    places = {place.resolve(): place for place in (Path("runs"), folder.parent)}  # one place has one entry, by the user's name
    return [str(path.parent) for place in reversed(places.values()) for path in sorted(place.glob("*/run.yaml"))]
