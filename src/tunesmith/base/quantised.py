"""The 4-bit base kept on disk once it was made: the next run reads a quarter of the bytes and quantises nothing.

A copy belongs to one model, as told by its files or its commit, one way of quantising, one compute type, one kind of device
(CPU and GPU round some weights to different neighbours) and the versions that made it. It is written beside the run, appears
whole or not at all, and old copies make room for new ones.
"""

import hashlib
import json
import shutil
import tempfile
import threading
import time
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tunesmith.base.catalog import ModelSource, cache_dir
from tunesmith.recipe import Recipe

LEAST_BYTES = 32 * 2**20
"""Smaller models are quantised as fast as they are read."""
MOST_BYTES = 64 * 10**9
"""Of all copies together."""
STALE_SECONDS = 24 * 3600


def copy_of(source: ModelSource, recipe: Recipe, dtype: torch.dtype, device: str) -> Path | None:
    """The folder where the 4-bit copy of a base is or would be; None if the model cannot be told apart from a later one."""
    identity = _identity(source)
    if identity is None or not recipe.load_in_4bit or not recipe.cache_base:
        return None
    how = [recipe.bnb_4bit_quant_type, recipe.bnb_4bit_use_double_quant, str(dtype), device]
    versions = [version(name) for name in ("transformers", "bitsandbytes")]
    digest = hashlib.sha256(json.dumps([identity, how, versions]).encode()).hexdigest()[:16]
    return cache_dir() / "bases" / f"{Path(source.path).name}-{digest}"


def _identity(source: ModelSource) -> Any:
    """What changes when a model's weights do: sizes and times of a folder's files, or the commit of a hub model, which the
    look at its config has just brought up to date."""
    folder = source.folder()
    if folder is None:
        return None
    if folder != Path(source.path):
        return [source.path, folder.name]
    files = sorted(file for kind in ("*.safetensors", "*.json") for file in folder.glob(kind))
    return [str(folder.resolve()), [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]]


def store(model: Any, folder: Path) -> threading.Thread | None:
    """Write a copy of a freshly loaded 4-bit model into ``folder``, in the background, from the tensors it has now, which are
    frozen but for biases; None if it is not worth a copy or there is no room."""
    tensors, seen = {}, set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:  # tied weights are stored once
            seen.add(tensor.data_ptr())
            tensors[name] = tensor.detach().clone() if name.endswith("bias") else tensor.detach()
    size = sum(tensor.nbytes for tensor in tensors.values())
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        room = min(MOST_BYTES, shutil.disk_usage(folder.parent).free // 4)
    except OSError:
        return None  # nowhere to keep it
    if size < LEAST_BYTES or size > room:
        return None
    settings = model.config.to_json_string(use_diff=False)
    if any(tensor.is_cuda for tensor in tensors.values()):
        torch.cuda.synchronize()  # they are read on a stream of the thread's own
    thread = threading.Thread(target=_write, args=(tensors, settings, model.generation_config, folder), name="keep the 4-bit base")
    thread.start()
    return thread


def _on_host(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies, each original being let go. On a stream of its own: the default one would make whoever works there wait for two
    gigabytes."""
    on_gpu = any(tensor.is_cuda for tensor in tensors.values())
    with torch.cuda.stream(torch.cuda.Stream()) if on_gpu else nullcontext():
        return {name: tensors.pop(name).to("cpu").contiguous() for name in list(tensors)}


def _write(tensors: dict[str, torch.Tensor], settings: str, generation: Any, folder: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".tmp-"))
    except OSError:
        return
    try:
        _make_room(folder.parent, sum(tensor.nbytes for tensor in tensors.values()))
        save_file(_on_host(tensors), made / "model.safetensors", metadata={"format": "pt"})
        (made / "config.json").write_text(settings, encoding="utf-8")
        if generation is not None:
            generation.save_pretrained(made)
        made.rename(folder)
    except (OSError, RuntimeError, SafetensorError):
        pass  # a full disk, another process that was faster, a GPU with no room for a stream: the copy is a convenience
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _make_room(parent: Path, needed: int) -> None:
    """Remove what broken-off runs left, and the copies used longest ago until the new one fits the bound."""
    for stale in parent.glob(".tmp-*"):
        if time.time() - stale.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(stale, ignore_errors=True)
    copies = sorted((copy for copy in parent.iterdir() if not copy.name.startswith(".")), key=lambda copy: copy.stat().st_mtime)
    sizes = [sum(file.stat().st_size for file in copy.iterdir()) for copy in copies]
    while copies and sum(sizes) + needed > MOST_BYTES:
        shutil.rmtree(copies.pop(0), ignore_errors=True)
        sizes.pop(0)
