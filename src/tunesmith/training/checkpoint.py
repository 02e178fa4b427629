"""Checkpoints: folders ``checkpoints/checkpoint-<step>`` that are whole or not there, and are known to be so when read.

    adapter.safetensors    the trained tensors
    optimizer.safetensors  the optimizer's
    random.safetensors     states of torch's generators
    best.safetensors       the adapter with the lowest held-out loss so far, with load_best_model_at_end
    metrics.jsonl          every update's record up to here
    state.json             position in the data, plain numbers, what the run was made from
    manifest.json          SHA-256 and bytes of each file; written last

A folder is written beside its place under another name, every file synced to the disk, renamed, and its parent synced. Only
then are older ones removed. Nothing is ever pickled.
"""

import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.base.disk import check_room, sync, write_durably
from tunesmith.errors import RunError
from tunesmith.training.state import Best, Position, State, Tensors

FORMAT = 1
NEEDED = {"adapter.safetensors", "optimizer.safetensors", "random.safetensors", "state.json", "metrics.jsonl"}
_NAME = re.compile(r"checkpoint-(0|[1-9][0-9]{0,17})")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint's folder holds. origin: what the run was made from. metrics: its metrics.jsonl up to there."""

    folder: Path
    state: State
    origin: dict[str, Any]
    metrics: bytes


class _DamageError(Exception):
    """What is wrong with a checkpoint's files."""


def save_checkpoint(root: Path, state: State, origin: Mapping[str, Any], metrics: bytes) -> Path:
    """Write a checkpoint into ``root``; returns its folder.

    Raises:
        RunError: the disk has not enough room for it.
        OSError: it could not be written; nothing of it is left, and those before are as they were.
    """
    files = _files(state, origin, metrics)
    step = state.position.step
    check_room(root, sum(map(len, files.values())) + 65536, f"the checkpoint of update {step}")
    made, place = root / f".tmp-checkpoint-{step}", root / f"checkpoint-{step}"
    try:
        made.mkdir()
        for name, content in files.items():
            write_durably(made / name, content)
        sync(made)
        os.rename(made, place)
        sync(root)
    except OSError:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return place


def checkpoints(root: Path) -> list[Path]:
    """Folders of checkpoints, the oldest first."""
    found = [(int(match[1]), path) for path in root.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def keep_newest(root: Path, limit: int) -> None:
    """Remove all checkpoints but the newest ``limit``; they are renamed first, so that none is there in part."""
    old = checkpoints(root)[:-limit]
    for path in old:
        os.rename(path, _doomed(path))
    if old:
        sync(root)
    for path in old:
        shutil.rmtree(_doomed(path), ignore_errors=True)


def _doomed(path: Path) -> Path:
    return path.with_name(f".tmp-old-{path.name}")


def newest_checkpoint(root: Path) -> tuple[Checkpoint | None, list[tuple[Path, str]]]:
    """The newest checkpoint whose files are as its manifest says, and newer ones that are not, each with what is wrong; None
    if there is none at all.

    Raises:
        RunError: there are some, and all are damaged.
    """
    damaged: list[tuple[Path, str]] = []
    for path in reversed(checkpoints(root)):
        try:
            return read_checkpoint(path), damaged
        except _DamageError as damage:
            damaged.append((path, str(damage)))
    if damaged:
        named = "; ".join(f"{path.name}: {what}" for path, what in damaged)
        raise RunError(
            f"No checkpoint in {root} is whole ({named}).",
            f"Train anew: `tunesmith train {root.parent / 'run.yaml'} --output-dir FOLDER`.",
        )
    return None, []


def set_aside(damaged: Path) -> Path:
    """Rename a damaged checkpoint, so that it is neither taken for one nor lost; returns where it is."""
    number, place = 1, damaged.with_name(f"damaged-{damaged.name}")
    while place.exists():
        number += 1
        place = damaged.with_name(f"damaged-{damaged.name}-{number}")
    os.rename(damaged, place)
    return place


def read_checkpoint(folder: Path) -> Checkpoint:
    """A checkpoint, every byte of it compared with its manifest."""
    files = _verified(folder)
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        about = json.loads(files["state.json"])
        adapter, optimizer, random = (load(files[f"{name}.safetensors"]) for name in ("adapter", "optimizer", "random"))
        best = Best(**about["best"], adapter=load(files["best.safetensors"])) if about["best"] else None
        position, unevaluated = Position(**about["position"]), about.get("unevaluated")
        state = State(position, adapter, optimizer, about["counts"], random, best, unevaluated)
        origin = dict(about["origin"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        # its hashes are right: another version wrote it
        raise _DamageError(f"it cannot be read ({type(error).__name__}: {error})") from error
    if folder.name != f"checkpoint-{state.position.step}":
        raise _DamageError(f"it is that of update {state.position.step} under another name")
    return Checkpoint(folder, state, origin, files["metrics.jsonl"])


def state_bytes(adapter_bytes: int, with_best: bool) -> int:
    """About the bytes of a checkpoint: the adapter, twice its size of optimizer, and the best adapter."""
    return adapter_bytes * (4 if with_best else 3) + 2**20


def _files(state: State, origin: Mapping[str, Any], metrics: bytes) -> dict[str, bytes]:
    from safetensors.torch import save

    best = state.best
    about = {
        "position": dataclasses.asdict(state.position),
        "counts": state.counts,
        "best": {"step": best.step, "loss": best.loss} if best else None,
        "unevaluated": state.unevaluated,
        "origin": dict(origin),
    }
    tensors: dict[str, Tensors] = {"adapter": state.adapter, "optimizer": state.optimizer, "random": state.random}
    if best:
        tensors["best"] = best.adapter
    files = {f"{name}.safetensors": save(values) for name, values in tensors.items()}
    files |= {"metrics.jsonl": metrics, "state.json": json.dumps(about, indent=2).encode()}
    listed = {name: {"sha256": _sha256(content), "bytes": len(content)} for name, content in files.items()}
    manifest: dict[str, Any] = {"format": FORMAT, "step": state.position.step, "files": listed}
    manifest["sha256"] = _own_sha256(manifest)
    return {**files, "manifest.json": json.dumps(manifest, indent=2).encode()}


def _verified(folder: Path) -> dict[str, bytes]:
    """The files of a checkpoint, each as its manifest says."""
    try:
        manifest = json.loads(_content(folder, "manifest.json"))
        own, listed = manifest.pop("sha256"), manifest["files"]
        if own != _own_sha256(manifest) or not listed.keys() >= NEEDED or any(Path(name).name != name for name in listed):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _DamageError("manifest.json is damaged") from error
    if manifest["format"] != FORMAT:
        raise _DamageError(f"it is of format {manifest['format']}, which another version of tunesmith reads")
    files = {}
    for name, told in listed.items():
        files[name] = content = _content(folder, name)
        if len(content) != told["bytes"]:
            raise _DamageError(f"{name} has {len(content):,} bytes where it had {told['bytes']:,}")
        if _sha256(content) != told["sha256"]:
            raise _DamageError(f"{name} is not what was saved (its SHA-256 differs)")
    return files


def _content(folder: Path, name: str) -> bytes:
    path = folder / name
    try:
        if not path.is_file():
            raise _DamageError(f"{name} is missing")
        return path.read_bytes()
    except OSError as error:
        raise _DamageError(f"{name} cannot be read ({error.strerror or error})") from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _own_sha256(manifest: Mapping[str, Any]) -> str:
    """Of the rest of a manifest, so that it cannot be damaged unseen itself."""
    return _sha256(json.dumps(manifest, sort_keys=True).encode())
