"""What a run is made from, so that going on with something else is noticed: settings, way, base, data, template, machine."""

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from tunesmith.base.catalog import ModelSource
from tunesmith.data.example import Example
from tunesmith.data.packing import PackedRows
from tunesmith.data.render import Renderer
from tunesmith.events import Prepared

FREE = {
    "output_dir", "save_steps", "save_minutes", "save_total_limit", "logging_steps", "cache_base",
}  # fmt: skip
"""Settings that change nothing of what a run learns."""
LIBRARIES = ("tunesmith", "torch", "transformers", "peft", "bitsandbytes")
SAMPLES, SAMPLE = 64, 2**16


def origin_of(job: Prepared, renderer: Renderer, samples: int) -> dict[str, Any]:
    """What this run is made from, as JSON. samples: held-out rows it answers before and after."""
    settings = {k: v for k, v in job.asked.model_dump(mode="json").items() if k not in FREE}
    return {
        "settings": settings,
        "way": dataclasses.asdict(job.plan.chosen.way),
        "base": {"name": job.source.base, "revision": job.source.revision, "files": _base_files(job.source)},
        "data": {"rows": job.data.facts.sha256, "tokens": _tokens(job.data.rows), "held out": _examples(job.data.held_out)},
        "chat template": _sha256(str(renderer.tokenizer.chat_template).encode()),
        "machine": {
            "computes": f"{str(job.compute.dtype).removeprefix('torch.')} on {job.compute.device.type}",
            "threads": torch.get_num_threads(),
            **{name: importlib.metadata.version(name) for name in LIBRARIES},
        },
        "samples": samples,
    }


def differences(then: Mapping[str, Any], now: Mapping[str, Any], part: str | None = None) -> dict[str, tuple[Any, Any]]:
    """What differs between two origins but for machine and samples, or in one part of them: name to (then, now)."""
    if part is None:
        parts = ("settings", "way", "base", "data", "chat template")
        return {k: v for name in parts for k, v in differences(then, now, name).items()}
    before, after = then.get(part), now.get(part)
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        return {part: (before, after)} if before != after else {}
    prefix = "" if part == "settings" else f"{part}: "
    names = [*after, *(name for name in before if name not in after)]
    return {f"{prefix}{n}": (before.get(n), after.get(n)) for n in names if before.get(n) != after.get(n)}


def describe(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """Differences in a line."""
    return "; ".join(f"{name} was {_short(then)} and is {_short(now)}" for name, (then, now) in changed.items())


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text[:12] + "…" if len(text) == 64 and set(text) <= set("0123456789abcdef") else text


def _base_files(source: ModelSource) -> str:
    """SHA-256 of names, sizes and samples of the base's config and weights: all of a file up to 4 MB, 64 blocks of a larger
    one. The revision alone where they are not here."""
    digest = hashlib.sha256(str(source.revision).encode())
    folder = source.folder()
    paths = sorted(p for p in folder.iterdir() if p.suffix in (".json", ".safetensors")) if folder else []
    for path in (p for p in paths if p.is_file() and "token" not in p.name):
        size = path.stat().st_size
        digest.update(f"\0{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            for sample in range(SAMPLES):
                file.seek(max(sample * size // SAMPLES, 0))
                digest.update(file.read(SAMPLE))
    return digest.hexdigest()


def _tokens(rows: PackedRows) -> str:
    """SHA-256 of the tokens and labels of all rows, in order."""
    examples = rows.examples
    digest = hashlib.sha256()
    for values in (examples.ids, examples.trained, examples.begins, examples.ends, rows.rows.order, rows.rows.starts):
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _examples(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps([example.input_ids, example.labels]).encode())
    return digest.hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
