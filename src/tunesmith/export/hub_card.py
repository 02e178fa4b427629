"""The card that goes to the hub: what a folder's own files say about it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tunesmith.base.catalog import BUNDLED, ModelSource
from tunesmith.errors import RunError
from tunesmith.export.card import HUB_ID, Card, card_text, cell, code
from tunesmith.export.hub_files import kind_of, local_name
from tunesmith.export.hub_scan import without_places
from tunesmith.export.manifest import read_manifest, sha256_of
from tunesmith.export.runtimes import GENERATION, TEMPLATE, Runtime, Shipped, read_config, runtimes

SETTINGS = (
    "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "use_rslora", "use_dora", "load_in_4bit", "bnb_4bit_quant_type",
    "max_length", "packing", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
    "learning_rate", "lr_scheduler_type", "warmup_ratio", "optim", "weight_decay", "seed",
)  # fmt: skip
"""Settings a card shows, where they say something."""


def hub_card(place: Path, repo: str, base: str | None = None, run: Path | None = None) -> str:
    """The card of what is pushed to ``repo``.

    Args:
        base: hub id of the base, where the folder does not name it. run: the run whose facts a merged model or GGUF file takes.

    Raises:
        RunError: the adapter is not the one that the run's manifest describes. AdapterError: its config cannot be read.
    """
    kind, told = kind_of(place), run or place
    manifest, settings = read_manifest(told), _settings(told)
    if kind == "adapter":
        _unchanged(place, manifest)
    config = read_config(told) if told.is_dir() and (told / "adapter_config.json").is_file() else {}
    shipped = shipped_of(told, repo, base, config, manifest, settings)
    known = bool(config or manifest)
    return card_text(
        Card(
            title=repo.rsplit("/", 1)[-1],
            what=_what(kind, shipped, known),
            base=shipped.base,
            revision=manifest.get("revision"),
            library={"adapter": "peft", "model": "transformers", "gguf": "gguf"}[kind],
            relation={"adapter": "adapter", "model": "finetune", "gguf": "quantized"}[kind],
            facts=_facts(manifest, settings, config, shipped),
            curve=_curve(told),
            versions={name: str(version) for name, version in _mapping(manifest.get("versions")).items()},
            datasets=_datasets(settings),
            uses=_uses(kind, place, repo, shipped),
        )
    )


def uses_of(place: Path, repo: str, base: str | None = None, run: Path | None = None) -> tuple[Runtime, ...]:
    """How what is pushed to ``repo`` is loaded; arguments as for `hub_card`."""
    kind = kind_of(place)
    return _uses(kind, place, repo, shipped_of(run or place, repo, base) if kind == "adapter" else None)


def _uses(kind: str, place: Path, repo: str, shipped: Shipped | None) -> tuple[Runtime, ...]:
    return runtimes(shipped) if kind == "adapter" and shipped else _whole(kind, place, repo)


def shipped_of(
    folder: Path, where: str, base: str | None = None, config: dict[str, Any] | None = None,
    manifest: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None,
) -> Shipped:  # fmt: skip
    """An adapter's folder as its users will meet it at ``where``. Loads nothing and asks nobody."""
    config = read_config(folder) if config is None else config
    manifest = read_manifest(folder) if manifest is None else manifest
    settings = _settings(folder) if settings is None else settings
    inside = str(manifest.get("base") or config.get("base_model_name_or_path") or "")
    asked = str(settings.get("model_name_or_path") or inside or "")
    found = base or (BUNDLED[asked][2] if asked in BUNDLED else asked.partition("@")[0])
    on_hub = found if "/" in found and HUB_ID.fullmatch(found) and not Path(found).exists() else None
    on_hub = None if found.endswith(".gguf") else on_hub
    name = on_hub or local_name(asked) or "its base"
    files = frozenset(file for file in (TEMPLATE, GENERATION) if (folder / file).is_file())
    return Shipped(where, config, on_hub, name, _family(inside, asked), asked.endswith(".gguf") or asked in BUNDLED, files)


def _what(kind: str, shipped: Shipped, known: bool) -> str:
    kinds = {"adapter": "A LoRA adapter", "model": "A merged model", "gguf": "A GGUF file"}
    base = f"[{cell(shipped.base)}](https://huggingface.co/{shipped.base})" if shipped.base else code(shipped.base_name)
    of = {"adapter": "for", "model": "of an adapter and", "gguf": "of an adapter for"}[kind]
    lines = [f"{kinds[kind]}{f' {of} {base}' if known else ''}, made with tunesmith."]
    if known and not shipped.base and kind == "adapter":
        lines.append(
            f"Its base, {base}, is not on the hub: whoever uses it needs a copy of it, and puts it where {base} stands below."
        )
    if known and shipped.base and shipped.gguf and kind == "adapter":
        lines.append("It was trained over a quantised GGUF file of that model, dequantised; the model itself is the nearest to it.")
    return "\n".join(lines)


def _facts(
    manifest: Mapping[str, Any], settings: Mapping[str, Any], config: Mapping[str, Any], shipped: Shipped
) -> dict[str, dict[str, Any]]:
    """What training wrote into the manifest, and where it did not, what settings and config say."""
    facts = {str(name): dict(_mapping(rows)) for name, rows in _mapping(manifest.get("facts")).items()}
    base = {"base": shipped.base or shipped.base_name, **({"revision": manifest["revision"]} if manifest.get("revision") else {})}
    facts["Model"] = base | {key: value for key, value in facts.get("Model", {}).items() if key != "base"}
    if not manifest.get("facts") and config:
        facts["Model"] |= {"adapter": f"r {config.get('r')}, alpha {config.get('lora_alpha')}"}
    if settings:
        data = {"data set": ", ".join(local_name(part) for part in str(settings.get("dataset_name", "")).split(","))}
        facts["Data"] = data | facts.get("Data", {})
        facts["Settings"] = {name: settings[name] for name in SETTINGS if settings.get(name) not in (None, False, -1)}
    if manifest.get("data_sha256"):
        facts.setdefault("Data", {})["data SHA-256"] = manifest["data_sha256"]
    updates = _mapping(manifest.get("updates"))
    if updates and updates.get("done") != updates.get("of"):
        facts.setdefault("Training", {})["stopped"] = f"after update {updates.get('done')} of {updates.get('of')}"
    shown = {name: {key: without_places(str(value)) for key, value in rows.items()} for name, rows in facts.items() if rows}
    return shown if config or manifest else {}


def _whole(kind: str, place: Path, repo: str) -> tuple[Runtime, ...]:
    """How a merged model or a GGUF file is used."""
    if kind == "gguf":
        file = place.name if place.is_file() else min(path.name for path in place.glob("*.gguf"))
        llama_cpp = Runtime("llama.cpp", True, "", (f"llama-cli -hf {repo}", f"# or: hf download {repo} {file}"))
        return llama_cpp, Runtime("Ollama", True, "", (f"ollama run hf.co/{repo}",))
    lines = ("from transformers import pipeline", "", f"ask = pipeline('text-generation', {repo!r})")
    return Runtime("transformers", True, "", lines, "python"), Runtime("vLLM", True, "", (f"vllm serve {repo}",))


def _unchanged(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raises RunError if the adapter is not the one the manifest describes."""
    written = _mapping(_mapping(manifest.get("files")).get("adapter_model.safetensors")).get("sha256")
    if written is not None and written != sha256_of(folder / "adapter_model.safetensors"):
        raise RunError(
            f"{folder}/adapter_model.safetensors is not the file that training wrote, so the facts on its card would be wrong.",
            "Put that file back, or take manifest.json away to push it without them.",
        )


def _curve(folder: Path) -> list[tuple[int, float, float | None]]:
    """Update, training loss and held-out loss, of every line of metrics.jsonl that can be read."""
    points = []
    path = folder / "metrics.jsonl"
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
            held_out = record.get("eval_loss")
            points.append((int(record["step"]), float(record["loss"]), None if held_out is None else float(held_out)))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return points


def _datasets(settings: Mapping[str, Any]) -> list[str]:
    """Hub ids among the data sets."""
    names = str(settings.get("dataset_name") or "").replace(" + ", ",").split(",")
    return [name for name in names if "/" in name and HUB_ID.fullmatch(name) and local_name(name) == name]


def _family(inside: str, asked: str) -> str | None:
    """The model_type of a base that is on this machine."""
    if asked in BUNDLED:
        return "llama"
    repo, _, revision = (inside or asked).partition("@")
    folder = (
        ModelSource(repo, revision or None, repo).folder() if repo and (HUB_ID.fullmatch(repo) or Path(repo).is_dir()) else None
    )
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]) if folder else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _settings(folder: Path) -> Mapping[str, Any]:
    try:
        return _mapping(yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
