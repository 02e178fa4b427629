"""manifest.json: what a run's files should be, and what they were made from."""

import hashlib
import json
from pathlib import Path
from typing import Any


def write_manifest(folder: Path, origin: dict[str, Any]) -> None:
    """Write SHA-256 and size of every file of the run, beside ``origin`` (base, data, versions), last of all files."""
    files = {}
    for path in sorted(p for p in folder.iterdir() if p.is_file() and p.name != "manifest.json"):
        files[path.name] = {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    text = json.dumps({"format": 1, **origin, "files": files}, indent=2)
    (folder / "manifest.json").write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a folder's manifest says; nothing where there is none, or none that can be read."""
    try:
        found = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
