"""Proves that a model card says facts, and that no name can break out of its place on it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tunesmith.export.card import write_card

HOSTILE = [
    'a"\n---\nlicense: evil',
    "a: b",
    "- item",
    "'; rm -rf /",
    "{curly} [square] #hash &anchor *star !tag |pipe >fold",
    "---",
    "`code` <script>alert(1)</script>",
    "ünï/ço∂é",
    "no",
    "3",
]


def front_of(folder: Path) -> dict[str, Any]:
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\n")
    front = yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n"))
    assert isinstance(front, dict)
    return front


def test_the_front_matter_is_what_the_hub_reads(tmp_path: Path) -> None:
    write_card(tmp_path, "org/name", {})
    assert front_of(tmp_path) == {"library_name": "peft", "base_model": "org/name", "tags": ["tunesmith", "lora", "sft"]}


@pytest.mark.parametrize("base", HOSTILE)
def test_front_matter_parses_to_the_very_name_whatever_it_is(tmp_path: Path, base: str) -> None:
    write_card(tmp_path, base, {})
    assert front_of(tmp_path) == {"library_name": "peft", "base_model": base, "tags": ["tunesmith", "lora", "sft"]}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_in_the_text_stays_on_its_line_without_markup(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "".join(c for c in name if c not in "/\n")
    folder.mkdir()
    write_card(folder, name, {name: name})
    body = (folder / "README.md").read_text(encoding="utf-8").split("\n---\n", 1)[1]
    lines = body.splitlines()
    assert sum(line.startswith("# ") for line in lines) == 1
    assert "<script>" not in body
    assert "license: evil" not in lines
    (row,) = (line for line in lines if line.startswith("| ") and line != "| | |")
    assert row.replace("\\|", "").count("|") == 3


def test_every_fact_is_a_row_of_the_table(tmp_path: Path) -> None:
    write_card(tmp_path, "org/name", {"rows": 720, "loss": "1.23\nat the end", "a|b": "c|d"})
    text = (tmp_path / "README.md").read_text()
    assert "| rows | 720 |" in text
    assert "| loss | 1.23 at the end |" in text
    assert "| a\\|b | c\\|d |" in text


def test_it_says_how_the_adapter_is_loaded(tmp_path: Path) -> None:
    write_card(tmp_path, "org/name", {})
    assert "AutoPeftModelForCausalLM.from_pretrained" in (tmp_path / "README.md").read_text()
