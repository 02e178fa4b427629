"""Tokenised data kept on disk, found again by what it was made of.

One safetensors file an entry: the arrays of `Examples`, and in its header JSON what else was found, with a checksum of every
array. It is written beside its place and moved there whole; what does not check out when read is as if it were not there.
Nothing is ever unpickled.
"""

import dataclasses
import hashlib
import json
import os
import re
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from os.path import expanduser
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.data.examples import Examples
from tunesmith.data.sources import BUNDLED, is_bundled

LIMIT = 4 * 2**30
"""Bytes of all entries; those not used for longest go first."""
STALE = 24 * 3600
"""Seconds after which nobody is still writing an entry."""
FORMAT = 1
ARRAYS = [f.name for f in dataclasses.fields(Examples) if f.name != "stems"]


@dataclass(frozen=True)
class Cache:
    """folder: where entries are. limit: bytes they may take."""

    folder: Path
    limit: int = LIMIT

    def load(self, key: str) -> tuple[Examples, dict[str, Any]] | None:
        """Examples saved under a key and the facts saved with them; None if there are none that are whole."""
        from safetensors import SafetensorError, safe_open

        path = self._path(key)
        try:
            with safe_open(path, "np") as file:
                about = file.metadata()["tunesmith"]
                if zlib.crc32(about.encode()) != int(file.metadata()["crc32"]):
                    return None
                header = json.loads(about)
                arrays = {name: file.get_tensor(name) for name in ARRAYS}
            os.utime(path)
            if header["checksums"] == _checksums(arrays):
                arrays["trained"] = arrays["trained"].view(np.bool_)
                return Examples(stems=tuple(header["stems"]), **arrays), header["facts"]
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            pass  # not there, cut short, or not ours: made again
        return None

    def save(self, key: str, examples: Examples, facts: Mapping[str, Any]) -> None:
        """Keep examples and facts (JSON) under a key. A disk that is full or not to be written keeps nothing."""
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        arrays = {name: np.ascontiguousarray(getattr(examples, name)) for name in ARRAYS}
        arrays["trained"] = arrays["trained"].view(np.uint8)
        if sum(array.nbytes for array in arrays.values()) > self.limit:
            return
        header = {"stems": examples.stems, "facts": dict(facts), "checksums": _checksums(arrays)}
        made = None
        with suppress(OSError, SafetensorError):
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, made = tempfile.mkstemp(dir=self.folder, prefix=".tmp-")
            os.close(handle)
            about = json.dumps(header)
            save_file(arrays, made, {"tunesmith": about, "crc32": str(zlib.crc32(about.encode()))})
            os.replace(made, self._path(key))
            made = None
            self._evict()
        if made:
            Path(made).unlink(missing_ok=True)

    def _evict(self) -> None:
        for path in self.folder.glob(".tmp-*"):  # of runs that were killed
            if time.time() - path.stat().st_mtime > STALE:
                path.unlink(missing_ok=True)
        entries = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in self.folder.glob("*.safetensors"))
        used = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if used > self.limit:
                path.unlink(missing_ok=True)
                used -= size

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def _checksums(arrays: Mapping[str, Any]) -> dict[str, int]:
    return {name: zlib.crc32(memoryview(array).cast("B")) if array.size else 0 for name, array in arrays.items()}


def contents_of(names: Sequence[str]) -> str | None:
    """SHA-256 of the names and bytes of the files that data sets are read from; None if one is on the hub, whose files are not
    here."""
    digest = hashlib.sha256()
    for name in names:
        here = local_files(name)
        if here is None:
            return None
        _add(digest, here)
    return digest.hexdigest()


def key_of(contents: str, settings: Mapping[str, Any], tokenizer: Any) -> str:
    """What decides the examples of data sets, as 64 hex digits: their files, the settings that say how they are read, the
    tokenizer and its chat template, and the code between a file and its tokens.

    Args:
        contents: as `contents_of` says. settings: those that change examples, as JSON.
    """
    digest = hashlib.sha256(f"{FORMAT}\0{contents}\0".encode())
    told = {
        "settings": dict(settings), "template": tokenizer.chat_template, "special": tokenizer.special_tokens_map,
        "versions": [version("tokenizers"), version("transformers")], "today": _today(str(tokenizer.chat_template)),
    }  # fmt: skip
    digest.update(json.dumps(told, sort_keys=True, default=str).encode())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    digest.update(backend.to_str().encode() if backend is not None else repr(sorted(tokenizer.get_vocab().items())).encode())
    _add(digest, code())
    return digest.hexdigest()


def code(first: str = "tokenise") -> list[Path]:
    """The modules of this room between a file and its tokens: ``first`` and all that it imports from here, and they from here."""
    room = Path(__file__).parent
    found, ahead = set(), [first]
    while ahead:
        if (name := ahead.pop()) not in found:
            found.add(name)
            ahead += re.findall(r"^\s*from tunesmith\.data\.(\w+) import", (room / f"{name}.py").read_text("utf-8"), re.MULTILINE)
    return [room / f"{name}.py" for name in sorted(found)]


def _add(digest: Any, paths: Sequence[Path]) -> None:
    for path in paths:
        digest.update(f"\0{path}\0".encode("utf-8", "surrogateescape"))
        for block in _blocks(path):
            digest.update(block)


def _today(template: str) -> str:
    """The date, where a template writes it."""
    from datetime import date

    return date.today().isoformat() if "strftime_now" in template else ""


def local_files(name: str) -> list[Path] | None:
    """The files a data set of this name is read from, or more of them; None if it is not here."""
    if is_bundled(name):
        return sorted((BUNDLED / name).glob("*.jsonl"))
    path = Path(expanduser(name))
    with suppress(OSError, ValueError):
        if path.is_file():
            return [path]
        if path.is_dir():
            return sorted(child for child in path.rglob("*") if child.is_file())
        if path.parent.is_dir() and any(c in path.name for c in "*?["):
            return sorted(path.parent.glob(path.name)) or None
    return None


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(2**20):
            yield block
