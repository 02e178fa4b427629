"""README.md of a run: a model card made of facts only. Whatever comes from outside is escaped, and stays where it is put."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tunesmith.export.runtimes import Runtime

POINTS = 12
"""Rows of the table that shows how the loss went."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class Card:
    """What a card says.

    title: of the page. what: the first sentence, markdown. base: hub id of the base model, None if it is on no hub. revision:
    its commit or branch. library, relation: the hub's words for what this is. facts: section to rows of a table. curve: update,
    training loss, held-out loss or None. versions: library to version. datasets: hub ids. uses: how it is loaded.
    """

    title: str
    what: str
    base: str | None = None
    revision: str | None = None
    library: str = "peft"
    relation: str | None = None
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    curve: Sequence[tuple[int, float, float | None]] = ()
    versions: Mapping[str, Any] = field(default_factory=dict)
    datasets: Sequence[str] = ()
    uses: Sequence[Runtime] = ()


def write_card(folder: Path, base: str, facts: dict[str, Any]) -> None:
    """Write a run's own card. ``facts``: heading to value, shown as a table; nothing from the rows themselves."""
    lines = (
        "from peft import AutoPeftModelForCausalLM",
        "from transformers import AutoTokenizer, GenerationConfig",
        "",
        "folder = 'PATH_OF_THIS_FOLDER'",
        "model = AutoPeftModelForCausalLM.from_pretrained(folder)",
        "model.generation_config = GenerationConfig.from_pretrained(folder)  # where answers end",
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
    )
    what = f"A LoRA adapter for {code(base)}, trained with tunesmith. `tunesmith push` writes a fuller card for the hub."
    on_hub = base if HUB_ID.fullmatch(base) else None
    card = Card(folder.name, what, on_hub, facts={"": facts}, uses=(Runtime("transformers", True, "", lines, "python"),))
    folder.joinpath("README.md").write_text(card_text(card), encoding="utf-8")


def card_text(card: Card) -> str:
    """The whole file: front matter, then markdown."""
    parts = [f"---\n{_front(card)}---\n", f"# {cell(card.title)}\n", f"{card.what}\n"]
    for name, rows in card.facts.items():
        parts.append((f"## {cell(name)}\n\n" if name else "") + _table(("", ""), list(rows.items())))
    if card.curve:
        parts.append(f"## How the loss went\n\n{_curve(card.curve)}")
    if card.uses:
        parts.append("## Use\n")
    for use in card.uses:
        told = f"{cell(use.why)}." if use.why else ""
        if use.loads:
            parts.append(f"### {cell(use.name)}\n" + (f"\n{_sentence(told)}\n" if told else ""))
        else:
            parts.append(f"### {cell(use.name)}\n\nNot as it is: {told}\n")
        if use.lines:
            parts.append(_fenced(use.lines, use.language))
    if card.versions:
        parts.append("## Versions\n\n" + _table(("", ""), list(card.versions.items())))
    return "\n".join(parts)


def cell(value: Any) -> str:
    """A value as text in markdown: on one line, no markup, no HTML, no template braces."""
    text = " ".join(str(value).split())
    for sign, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("`", "'")):
        text = text.replace(sign, safe)
    for sign in "[]*{}":
        text = text.replace(sign, f"&#{ord(sign)};")
    return re.sub(r"(?<!\w)_|_(?!\w)", "&#95;", text)  # within a word it is no markup


def code(value: Any) -> str:
    """A value as code within a sentence."""
    return f"`{' '.join(str(value).replace('`', chr(39)).split())}`" if re.fullmatch(r"[\w./@:+ -]+", str(value)) else cell(value)


def _front(card: Card) -> str:
    front: dict[str, Any] = {"library_name": card.library, "model_name": card.title}
    if card.base:
        front["base_model"] = card.base
    if card.base and card.relation:
        front["base_model_relation"] = card.relation
    if card.datasets:
        front["datasets"] = list(card.datasets)
    front |= {"pipeline_tag": "text-generation", "tags": ["tunesmith", *(["lora"] if card.library == "peft" else []), "sft"]}
    return str(yaml.safe_dump(front, sort_keys=False, width=10_000))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _table(head: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(map(cell, row))} |" for row in rows)]
    return "\n".join(line.replace("|  |  |", "| | |") for line in lines) + "\n"


def _curve(points: Sequence[tuple[int, float, float | None]]) -> str:
    """The losses as a table: the mean of every stretch of updates, and the last held-out loss in it."""
    held_out = any(point[2] is not None for point in points)
    rows: list[tuple[Any, ...]] = []
    for number in range(min(POINTS, len(points))):
        share = points[number * len(points) // min(POINTS, len(points)) : (number + 1) * len(points) // min(POINTS, len(points))]
        name = f"{share[0][0]}–{share[-1][0]}" if len(share) > 1 else str(share[0][0])
        seen = [point[2] for point in share if point[2] is not None]
        mean = f"{sum(point[1] for point in share) / len(share):.3f}"
        rows.append((name, mean, *([f"{seen[-1]:.3f}" if seen else ""] if held_out else [])))
    return _table(("updates", "training loss", *(["held-out loss"] if held_out else [])), rows)


def _fenced(lines: Sequence[str], language: str) -> str:
    """A block of code with a fence longer than any in it."""
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([fence + language, *lines, fence]) + "\n"
