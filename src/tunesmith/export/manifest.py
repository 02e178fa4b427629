"""manifest.json: what a run's files should be, and what they were made from."""

import hashlib
import json
from pathlib import Path
from typing import Any


def write_manifest(folder: Path, origin: dict[str, Any]) -> None:
    """Write SHA-256 and size of every file of the run, beside ``origin`` (base, data, versions), last of all files."""
    files = {}
    for path in sorted(p for p in folder.iterdir() if p.is_file() and p.name != "manifest.json"):
        content = path.read_bytes()
        files[path.name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    text = json.dumps({"format": 1, **origin, "files": files}, indent=2)
    (folder / "manifest.json").write_text(text + "\n", encoding="utf-8")
