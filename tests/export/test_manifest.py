"""Proves that a manifest names every file of a run with its hash, so that a changed file is seen."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.export.manifest import write_manifest


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "b.bin").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "empty").touch()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "inside").write_text("not of the run itself")
    return tmp_path


def read(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def test_every_file_is_there_with_its_hash_and_size(run: Path) -> None:
    write_manifest(run, {})
    files = read(run)["files"]
    assert list(files) == ["a.txt", "b.bin", "empty"]
    for name, facts in files.items():
        content = (run / name).read_bytes()
        assert facts == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def test_a_known_hash(run: Path) -> None:
    write_manifest(run, {})
    assert read(run)["files"]["a.txt"]["sha256"] == "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"


def test_a_changed_file_no_longer_matches(run: Path) -> None:
    write_manifest(run, {})
    (run / "a.txt").write_text("hellO")
    assert read(run)["files"]["a.txt"]["sha256"] != hashlib.sha256((run / "a.txt").read_bytes()).hexdigest()


def test_it_says_what_the_run_was_made_from(run: Path) -> None:
    write_manifest(run, {"base": "org/ünï", "revision": None, "versions": {"torch": "2"}})
    content = read(run)
    assert (content["format"], content["base"], content["revision"], content["versions"]) == (1, "org/ünï", None, {"torch": "2"})


def test_writing_it_again_never_lists_itself_and_gives_the_same_bytes(run: Path) -> None:
    write_manifest(run, {"base": "x"})
    first = (run / "manifest.json").read_bytes()
    write_manifest(run, {"base": "x"})
    assert (run / "manifest.json").read_bytes() == first
    assert "manifest.json" not in read(run)["files"]
