"""A comparison on the terminal: rows, figures, and the verdict last, where the eye is."""

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tunesmith.cli.visible import on_one_line
from tunesmith.generate.compare import ComparedRow, Comparison, Side
from tunesmith.generate.measure import Measure
from tunesmith.generate.verdict import Verdict, interval, shown

STYLES = {"better": "green", "none": "green", "worse": "red", "severe": "bold red", "some": "yellow"}
ROWS, LONG = 10, 100
"""Rows shown, and characters of an answer."""


def show_comparison(compared: Comparison, console: Console, rows: int = ROWS) -> None:
    """Print it. rows: so many of the rows, those that changed for the worse first and then those that gained most."""
    some = _ends(compared.by_gain, rows)
    if some:
        console.print(_rows_table(some, len(compared.rows)))
    console.print(_figures_table(compared))
    for note in compared.notes:
        console.print(Text(f"  {note}", "dim"))
    console.print(_verdict_line("Tuned against base", compared.verdict))
    console.print(_verdict_line("Forgetting", compared.forgetting))


def _ends(rows: Sequence[ComparedRow], most: int) -> list[ComparedRow]:
    """Of rows sorted by gain, the first few and the last few."""
    if len(rows) <= most:
        return list(rows)
    worst = most // 2
    return [*rows[:worst], *rows[len(rows) - (most - worst) :]]


def _rows_table(rows: Sequence[ComparedRow], count: int) -> Table:
    which = "" if len(rows) == count else f", the {len(rows)} of {count} rows that gained least and most"
    table = Table(title=f"Before and after{which}", title_justify="left", title_style="bold", row_styles=["", "on grey7"])
    for column, width in (("asked", 3), ("base", 2), ("tuned", 3), ("expected", 3)):
        table.add_column(column, ratio=width, overflow="fold")
    for row in rows:
        table.add_row(
            Text(_short(row.question)), _answer(row.before, "dim"), _answer(row.after, "yellow"), Text(_short(row.expected), "dim")
        )
    return table


def _answer(side: Side, style: str) -> Text:
    return Text.assemble((_short(side.text), "green" if side.right else style), ("" if side.stopped else " (did not stop)", "dim"))


def _short(text: str) -> str:
    line = on_one_line(text)
    return line if len(line) <= LONG else line[: LONG - 1] + "…"


def _figures_table(compared: Comparison) -> Table:
    table = Table(title="Base against tuned", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name, justify in (("", "left"), ("base", "right"), ("tuned", "right"), ("change, 95 %", "left"), ("", "left")):
        first = not table.columns
        table.add_column(name, justify=justify, style="cyan" if first else "", no_wrap=first)  # type: ignore[arg-type]
    for one in compared.measures:
        table.add_row(*_cells(one))
    table.add_section()
    for one in compared.abilities:
        table.add_row(*_cells(one))
    return table


def _cells(one: Measure) -> Sequence[Text]:
    before, after = (shown(value, one) if math.isfinite(value) else "∞" for value in (one.before, one.after))
    word = f"{one.word} ({one.rows:,})" if one.word == "too few rows" else one.word
    return Text(one.name), Text(before), Text(after), Text(interval(one), "dim"), Text(word, STYLES.get(one.word, "dim"))


def _verdict_line(name: str, said: Verdict) -> Text:
    return Text.assemble((f"{name}: ", "bold"), (said.word, STYLES.get(said.word, "yellow") + " bold"), f"  {said.reason}")
