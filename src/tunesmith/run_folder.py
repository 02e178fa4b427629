"""A run's folder while a run is in it: claimed by one process, gone on with, finished."""

import dataclasses
import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tunesmith.base.disk import check_room
from tunesmith.errors import MachineError, RunError, TrainingError
from tunesmith.events import Note, Prepared, Watch
from tunesmith.export.manifest import read_manifest
from tunesmith.job import with_less_memory
from tunesmith.origin import describe, differences
from tunesmith.places import check_output
from tunesmith.recipe import Recipe
from tunesmith.training.checkpoint import Checkpoint, checkpoints, newest_checkpoint, set_aside, state_bytes
from tunesmith.training.lock import RunLock
from tunesmith.training.workshop import remove_leftovers


@contextmanager
def claim(recipe: Recipe, folder: Path) -> Iterator[None]:
    """The folder made and locked, with the recipe in it.

    Raises:
        RunError: it holds something already, another process has it, or it cannot be written.
    """
    check_output(recipe)
    try:
        lock = RunLock(folder)
        with lock:
            if (folder / "run.yaml").exists():  # another process was faster, and is done
                check_output(recipe)
            recipe.write(folder / "run.yaml")
            yield
    except OSError as error:
        if (folder / "run.yaml").exists():
            raise
        raise RunError(f"{folder} cannot be written: {error.strerror or error}.", "Give another --output-dir.") from error


def is_finished(folder: Path) -> bool:
    """Whether every update was made and everything written: the manifest is written last."""
    try:
        updates = read_manifest(folder)["updates"]
        return bool(updates["done"] >= updates["of"])
    except (KeyError, TypeError):
        return False


def check_space(recipe: Recipe, folder: Path, adapter: int) -> None:
    """Raises RunError if the disk is too full for the checkpoints that will be there at once, and the adapter of so many
    bytes."""
    one, count = state_bytes(adapter, recipe.load_best_model_at_end), recipe.save_total_limit + 1
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    check_room(place, count * one + adapter, f"this run ({count} checkpoints of about {one:,} bytes at once, and the adapter)")


def check_same(folder: Path, found: Checkpoint, origin: dict[str, Any], allow_changed: bool, watch: Watch) -> None:
    """Raises RunError if the run would go on with other data, base, template or settings than it began with."""
    changed = differences(found.origin, origin)
    if changed and not allow_changed:
        raise RunError(
            f"{folder} was begun with something else: {describe(changed)}.",
            f"Put that back, or go on all the same with `tunesmith resume {folder} --allow-changed`.",
        )
    if changed:
        watch(Note(f"Going on although it is not as it began: {describe(changed)}"))
    if moved := differences(found.origin, origin, "machine"):
        watch(Note(f"Last digits may differ from those of an undisturbed run: {describe(moved)}"))


def step_down(
    job: Prepared, folder: Path, origin: dict[str, Any], watch: Watch
) -> tuple[Prepared, Checkpoint | None, dict[str, Any]]:  # fmt: skip
    """After memory ran out: the job in a way that takes less, with the same rows an update; the checkpoint it goes on from;
    what the run is made from now.

    Raises:
        MachineError: it took the least already.
    """
    import torch

    gc.collect()  # the model that did not fit
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    lower = with_less_memory(job)
    if lower is None:
        raise MachineError(
            f"Memory ran out, and of the ways to run this that its settings leave open, it went the one that takes least "
            f"({job.plan.chosen.way}).",
            f"Free some memory, then `tunesmith resume {folder}`; or train anew with a smaller --per-device-train-batch-size or "
            "--max-length.",
        )
    found, _ = newest_checkpoint(folder / "checkpoints")
    where = f"update {found.state.position.step}" if found else "the start"
    watch(Note(f"Memory ran out; going on from {where} with {lower.plan.chosen.way}. Every update reads the same rows as before"))
    return lower, found, {**origin, "way": dataclasses.asdict(lower.plan.chosen.way)}


@contextmanager
def last_state_named(folder: Path, watch: Watch) -> Iterator[None]:
    """Where training stops because it went wrong, the watcher is told which state is kept."""
    try:
        yield
    except TrainingError:
        if kept := checkpoints(folder / "checkpoints"):
            watch(Note(f"{kept[-1]} holds the newest good state; nothing after it was saved"))
        raise


def tidy_and_record(folder: Path, found: Checkpoint | None, origin: dict[str, Any], damaged: list[Path]) -> None:
    """Remove what was being written when the run ended, set damaged checkpoints aside, and add a line to resumes.jsonl: when,
    from which update, what had changed since, what was set aside."""
    for place in (folder, folder / "checkpoints"):
        remove_leftovers(place)
    changed = {**differences(found.origin, origin), **differences(found.origin, origin, "machine")} if found else {}
    record = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "from": found.state.position.step if found else None,
        "changed": changed,
        "set aside": [set_aside(path).name for path in damaged],
    }
    with (folder / "resumes.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
