"""What must not be published: secrets, and places on this machine, found in files before they leave it."""

import json
import os
import re
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

SECRETS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{16,}",
    "an AWS access key": r"A[KS]IA[0-9A-Z]{16}\b",
    "an AWS secret key": r"(?:secret_access_key|SECRET_ACCESS_KEY|[sS]ecretAccessKey)[\"']?\s*[=:]\s*[\"']?[A-Za-z0-9/+]{40}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a GitHub token": r"(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{22,})",
    "a GitLab token": r"glpat-[A-Za-z0-9_-]{20}",
    "a Slack token": r"xox[abeprs]-[A-Za-z0-9-]{10,}",
    "a Google API key": r"AIza[0-9A-Za-z_-]{35}",
    "an API key": r"\bsk-(?:[a-z0-9]{1,12}-){0,3}[A-Za-z0-9_]{20,}",
    "a signed token": r"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",
    "a password in a URL": r"://[^\s/:@\"'{}]+:[^\s/@\"'{}]+@",
    "a secret setting": r"(?:TOKEN|SECRET|PASSWORD|API_KEY)\s*=\s*[\"']?[^\s\"'<>{}|]{8,}",
}
"""Shapes of secrets, each with its name."""
ROOTS = "home|Users|root|tmp|var|mnt|media|data|scratch|work|workspace|private|srv|opt|content|kaggle|gpfs|lustre|nfs|Volumes"
"""First folders of places that belong to one machine or one person."""
PLACE = "|".join(
    (
        rf"(?<![\w.:/<\\])(?:file://)?/(?:{ROOTS})/[\w.@+~-]+[^\s\"'`|<>)]*",
        r"\b[A-Za-z]:\\{1,2}\w[^\s\"'`|<>]*",
        r"(?<![\w/])~/\w[^\s\"'`|<>)]*",
    )
)
"""What looks like a place on somebody's machine: from the root of it, of a Windows drive, or of a home."""
VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json")
"""Files of words from anywhere: what looks like a place there is a word. This very machine's are looked for all the same."""
MOST = 20
LONGEST = 100_000_000
"""Bytes up to which the header of a safetensors file can reach; the format's own limit."""


@dataclass(frozen=True)
class Finding:
    """line: from 1; 0 for what is inside a binary file. shown: enough of it to find it, not enough to use it."""

    file: str
    line: int
    what: str
    shown: str

    def __str__(self) -> str:
        where = f"{self.file}, line {self.line}" if self.line else self.file
        return f"{where}: {self.what} ({self.shown})"


def scan(name: str, text: str, secrets: tuple[str, ...] = ()) -> list[Finding]:
    """Secrets and local places in a text, up to `MOST` of a shape. ``secrets``: further words that must not be in it, such as the
    token in use."""
    found: dict[tuple[int, str], Finding] = {}
    shapes = [("the token you are logged in with", re.escape(word), True) for word in secrets]
    shapes += [(what, shape, True) for what, shape in SECRETS.items()]
    shapes += [("a local path", rf"{re.escape(place)}(?![\w-])[^\s\"'`|<>)]*", False) for place in _own_places()]
    shapes += [("a local path", PLACE, False)] if name not in VOCABULARIES else []
    for what, shape, secret in shapes:
        for hit in islice(re.finditer(shape, text), MOST):
            line = text.count("\n", 0, hit.start()) + 1
            shown = hit.group().strip()[:6] + "…" if secret else hit.group()[:80]
            found.setdefault((line, what), Finding(name, line, what, shown))
    return sorted(found.values(), key=lambda finding: finding.line)


def scan_file(path: Path, secrets: tuple[str, ...] = ()) -> list[Finding]:
    """The same of a file: all of a text, the metadata of a safetensors or GGUF file."""
    if path.suffix == ".safetensors":
        text = _safetensors_metadata(path)
    elif path.suffix == ".gguf":
        text = "\n".join(_gguf_metadata(path))
    elif path.suffix == ".model":  # sentencepiece: a vocabulary without text
        return []
    else:
        return scan(path.name, path.read_text(encoding="utf-8", errors="replace"), secrets)
    return [Finding(path.name, 0, f.what, f.shown) for f in scan(path.name, text, secrets)]


def _own_places() -> list[str]:
    """Folders of this machine and this user that are long enough to mean something."""
    places = {str(Path.home()), os.getcwd(), tempfile.gettempdir()}
    return sorted((p for p in places if p.count(os.sep) > 1 or len(p) > 4), key=len, reverse=True)


def _safetensors_metadata(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(8)
        size = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        header = file.read(size) if 0 < size <= LONGEST else b""
    try:
        metadata = json.loads(header).get("__metadata__", {})
    except (ValueError, AttributeError, RecursionError):
        return ""
    return "\n".join(f"{key}: {value}" for key, value in metadata.items()) if isinstance(metadata, dict) else ""


def _gguf_metadata(path: Path) -> Iterator[str]:
    import gguf

    for field in gguf.GGUFReader(path).fields.values():
        if field.types and field.types[0] == gguf.GGUFValueType.STRING:
            yield str(field.contents())


def without_places(text: str) -> str:
    """The text with every place on this machine cut down to its last name."""
    text = re.sub(PLACE, lambda hit: re.split(r"[\\/]", hit.group().rstrip("\\/"))[-1], text)
    for place in _own_places():
        text = re.sub(rf"{re.escape(place)}(?![\w-])/?", "", text)
    return text
