"""What of a folder goes to the hub, as it goes, and why the rest stays."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml

from tunesmith.errors import RunError
from tunesmith.export.hub_scan import Finding, scan, scan_file
from tunesmith.export.runtimes import GENERATION, TEMPLATE

TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "tokenizer.model", TEMPLATE,
)  # fmt: skip
ALLOWED = {
    "adapter": ("adapter_config.json", "adapter_model.safetensors", GENERATION, *TOKENIZER, "run.yaml", "metrics.jsonl"),
    "model": ("config.json", GENERATION, "model.safetensors.index.json", "model.safetensors", *TOKENIZER),
    "gguf": ("Modelfile",),
}
"""Files that go, by what the folder holds; shards and .gguf files beside them. The card is written for the hub."""
STAYS = {
    "report.html": "it shows rows of your data",
    "manifest.json": "its hashes are those of the files here",
    "checkpoints": "they are for resuming",
    "resumes.jsonl": "it is about this machine",
    "README.md": "the hub gets a card of its own",
}
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
PATHS = ("model_name_or_path", "dataset_name", "eval_dataset", "chat_template", "path")
"""Settings of a recipe that may name a place on this machine."""
NAMES = ("base_model_name_or_path", "_name_or_path", "name_or_path")
"""Entries of JSON files that may name a place on this machine."""


@dataclass(frozen=True)
class Outgoing:
    """A file as it goes: a path, or the bytes that are sent instead of the file's own."""

    name: str
    content: Path | bytes

    @property
    def bytes(self) -> int:
        """Its size."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


@dataclass(frozen=True)
class Parcel:
    """kind: adapter, model or gguf. files: what goes, in order. stays: name to reason. findings: why it may not go yet."""

    kind: str
    files: tuple[Outgoing, ...]
    stays: dict[str, str]
    findings: tuple[Finding, ...] = ()


def kind_of(place: Path) -> str:
    """adapter, model or gguf. Raises RunError if a folder or file is none of these."""
    if place.is_file() and place.suffix == ".gguf":
        return "gguf"
    if not place.is_dir():
        raise RunError(f"There is no run {place}.", "Give a run's folder, one that `tunesmith merge` wrote, or a .gguf file.")
    names = {path.name for path in place.iterdir()}
    if "adapter_config.json" in names:
        if "adapter_model.safetensors" not in names:
            raise RunError(
                f"{place} has no adapter_model.safetensors: it is unfinished, or was saved as a pickle.",
                f"Finish it with `tunesmith resume {place}`, or save it as safetensors.",
            )
        return "adapter"
    if "config.json" in names and any(name.endswith(".safetensors") for name in names):
        return "model"
    if any(name.endswith(".gguf") for name in names):
        return "gguf"
    if "run.yaml" in names:
        raise RunError(f"{place} has no adapter yet: its training was stopped.", f"Finish it with `tunesmith resume {place}`.")
    raise RunError(f"{place} holds nothing to push.", "Give a run's folder, one that `tunesmith merge` wrote, or a .gguf file.")


def pack(place: Path, card: str, base: str | None, secrets: tuple[str, ...] = ()) -> Parcel:
    """Choose and clean what goes, and scan all of it.

    Args:
        card: the text of README.md. base: what adapter_config.json shall name as the base model; None to leave it, but for the
            folders before its name. secrets: words that must be in no file.

    Raises:
        RunError: there is nothing to push, or a file that must go is a link or cannot be read.
    """
    kind = kind_of(place)
    paths = sorted(place.iterdir()) if place.is_dir() else [place, *_modelfile(place)]
    files, stays = [Outgoing("README.md", card.encode())], {}
    for path in paths:
        reason = _reason(path, kind)
        if reason is None:
            files.append(Outgoing(path.name, _cleaned(path, base) or path))
        elif path.name != "README.md":
            stays[path.name] = reason
    if kind == "model":
        _whole(place, {file.name for file in files})
    findings = [finding for file in files for finding in _scanned(file, secrets)]
    return Parcel(kind, tuple(files), stays, tuple(findings))


def local_name(value: str) -> str:
    """The name at the end of a path, if it is one of this machine; a hub id or the name of a bundled model stays as it is."""
    windows = PureWindowsPath(value)
    if "\\" in value or windows.drive:
        return windows.name
    path = Path(value).expanduser()
    if value.startswith(("/", "~", ".")) or value.count("/") > 1 or path.exists() or path.suffix in _FILES:
        return path.resolve().name if value in (".", "..") else path.name
    return value


_FILES = (".gguf", ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jinja", ".txt", ".yaml")


def _modelfile(file: Path) -> list[Path]:
    """The Modelfile beside a GGUF file, if it is that file's."""
    beside = file.with_name("Modelfile")
    return [beside] if beside.is_file() and file.name in beside.read_text(encoding="utf-8", errors="replace") else []


def _reason(path: Path, kind: str) -> str | None:
    """Why a file stays; None if it goes. Raises RunError if it should go and cannot."""
    shard = kind == "model" and path.name.startswith("model-") and path.suffix == ".safetensors"
    if path.name in ALLOWED[kind] or shard or (kind == "gguf" and path.suffix == ".gguf"):
        if path.is_symlink() or not path.is_file():
            raise RunError(f"{path} is not a plain file, so it does not go to the hub.", "Put a copy of the file there.")
        return None
    if path.name in STAYS:
        return STAYS[path.name]
    if path.suffix in PICKLES:
        return "a pickle: opening it can run any code"
    if path.is_dir():
        return "a folder"
    return "not among the files that go"


def _whole(folder: Path, names: set[str]) -> None:
    """Raises RunError if a shard that the index of a merged model names is missing."""
    index = folder / "model.safetensors.index.json"
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()) if index.is_file() else set()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{index} is not a valid index of weight files.", "Merge again.") from error
    if missing := sorted(map(str, shards - names)):
        raise RunError(f"{folder} misses {missing[0]}, which its index names.", "Merge again.")


def _cleaned(path: Path, base: str | None) -> bytes | None:
    """A file without the places on this machine that it is known to name; None if there is nothing to change."""
    make: dict[str, Callable[[str], str]] = {
        "run.yaml": _clean_recipe,
        "adapter_config.json": lambda text: _clean_json(text, base),
        "config.json": lambda text: _clean_json(text, None),
        "tokenizer_config.json": lambda text: _clean_json(text, None),
    }
    if path.name not in make:
        return None
    try:
        text = path.read_text(encoding="utf-8")
        cleaned = make[path.name](text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}.", "Mend the file.") from error
    return None if cleaned == text else cleaned.encode()


def _clean_recipe(text: str) -> str:
    settings = yaml.safe_load(text)
    if not isinstance(settings, dict):
        raise ValueError("it does not hold `key: value` lines")
    kept = {key: _named(key, value) for key, value in settings.items() if key != "output_dir"}
    if isinstance(kept.get("datasets"), list):
        kept["datasets"] = [
            {key: _named(key, value) for key, value in entry.items()} if isinstance(entry, dict) else _named("path", entry)
            for entry in kept["datasets"]
        ]
        named = [str(entry["path"] if isinstance(entry, dict) else entry) for entry in kept["datasets"]]
        kept["dataset_name"] = " + ".join(named)
    return str(yaml.safe_dump(kept, sort_keys=False, allow_unicode=True))


def _named(key: str, value: Any) -> Any:
    if key not in PATHS or not isinstance(value, str):
        return value
    return ",".join(local_name(part) for part in value.split(",")) if key in ("dataset_name", "eval_dataset") else local_name(value)


def _clean_json(text: str, base: str | None) -> str:
    entries = json.loads(text)
    if not isinstance(entries, dict):
        raise ValueError("it holds no object")
    changed = {key: local_name(value) for key, value in entries.items() if key in NAMES and isinstance(value, str)}
    if base is not None and "base_model_name_or_path" in entries:
        changed["base_model_name_or_path"] = base
    if all(entries[key] == value for key, value in changed.items()):
        return text
    return json.dumps(entries | changed, indent=2, ensure_ascii=False) + "\n"


def _scanned(file: Outgoing, secrets: tuple[str, ...]) -> list[Finding]:
    if isinstance(file.content, bytes):
        return scan(file.name, file.content.decode("utf-8", errors="replace"), secrets)
    return scan_file(file.content, secrets)
