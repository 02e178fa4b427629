"""Proves that a model card says facts, and that no name can break out of its place on it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tunesmith.export.card import Card, card_text, cell, write_card
from tunesmith.export.runtimes import Runtime

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
    "{{ 7 * 7 }} {% raw %}",
    "**bold** _em_ [link](javascript:alert(1)) ![x](http://x/y.png)",
    "``` \n```\n# heading",
    "<!-- x --> &lt;script&gt;",
]


def front_of(folder: Path) -> dict[str, Any]:
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\n")
    front = yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n"))
    assert isinstance(front, dict)
    return front


def test_the_front_matter_is_what_the_hub_reads(tmp_path: Path) -> None:
    write_card(tmp_path, "org/name", {})
    assert front_of(tmp_path) == {
        "library_name": "peft", "model_name": tmp_path.name, "base_model": "org/name", "pipeline_tag": "text-generation",
        "tags": ["tunesmith", "lora", "sft"],
    }  # fmt: skip


def test_a_base_that_is_on_no_hub_is_not_named_as_if_it_were(tmp_path: Path) -> None:
    write_card(tmp_path, "/home/ann/models/tiny", {})
    assert "base_model" not in front_of(tmp_path)


@pytest.mark.parametrize("name", HOSTILE)
def test_front_matter_parses_to_the_very_names_whatever_they_are(tmp_path: Path, name: str) -> None:
    card = Card(name, "what", base=name, relation=name, datasets=[name, "b"], facts={name: {name: name}}, versions={name: name})
    (tmp_path / "README.md").write_text(card_text(card), encoding="utf-8")
    front = front_of(tmp_path)
    assert [front["model_name"], front["base_model"], front["base_model_relation"]] == [name] * 3
    assert front["datasets"] == [name, "b"]


@pytest.mark.parametrize("name", HOSTILE)
def test_no_html_no_braces_and_no_markup_come_in_from_outside(name: str) -> None:
    card = Card(name, "what", facts={name: {name: name}}, versions={name: name}, uses=[Runtime(name, False, name, ())])
    body = card_text(card).split("\n---\n", 1)[1]
    for sign in ("<", "{{", "{%", "`", "](", "**"):
        assert sign not in body, sign
    assert [line for line in body.splitlines() if line.startswith("# ")] == [f"# {cell(name)}"]


def test_code_that_holds_a_fence_stays_within_its_own() -> None:
    text = card_text(Card("x", "what", uses=[Runtime("a", True, "", ("```", "# not a heading", "````"))]))
    assert "`````bash\n```\n# not a heading\n````\n`````\n" in text


def test_the_curve_is_a_table_of_means_over_every_update() -> None:
    text = card_text(Card("x", "what", curve=[(n, float(n), 0.5 if n == 100 else None) for n in range(1, 101)]))
    rows = [line for line in text.splitlines() if "–" in line]
    assert len(rows) == 12
    assert rows[0] == "| 1–8 | 4.500 |  |"
    assert rows[-1] == "| 92–100 | 96.000 | 0.500 |"
    assert "| 1 | 2.000 |\n| 2 | 1.000 |" in card_text(Card("x", "what", curve=[(1, 2.0, None), (2, 1.0, None)]))


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
