"""report.html: one self-contained page with what was trained, how it went, and what changed."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.generate.compare import Comparison
from tunesmith.generate.compare_page import judgement, measures_table, page, rows_table
from tunesmith.training.loop import StepReport

INK, ACCENT, QUIET = "#1d2433", "#2f6f4f", "#6b7385"


def write_report(
    path: Path, title: str, facts: Mapping[str, Mapping[str, Any]], steps: Sequence[StepReport], compared: Comparison | None
) -> None:
    """Write the page. ``facts``: section title to rows of a table. ``compared``: base against tuned, where rows were held out.
    Everything from outside is escaped."""
    sections = "".join(_section(name, rows) for name, rows in facts.items())
    curves = f"<img alt='loss and learning rate over the updates' src='{_curves(steps)}'>"
    changed = f"{judgement(compared)}{rows_table(compared)}{measures_table(compared)}" if compared else ""
    body = f"{_headline(steps, compared)}{curves}{changed}<div class=grid>{sections}</div>"
    path.write_text(page(title, body, pictures=True), encoding="utf-8", errors="backslashreplace")


def _headline(steps: Sequence[StepReport], compared: Comparison | None) -> str:
    last = steps[-1]
    held_out = [s.eval_loss for s in steps if s.eval_loss is not None]
    tiles = [("updates", f"{last.step}"), ("loss, first → last", f"{steps[0].loss:.2f} → {last.loss:.2f}")]
    if held_out:
        tiles.append(("held-out loss", f"{held_out[-1]:.3f}"))
    if compared and compared.rows:
        before, after = compared.right
        tiles.append(("right answers, before → after", f"{before} → {after} of {len(compared.rows)}"))
    tiles.append(("training time", f"{sum(s.seconds for s in steps):.0f} s"))
    cells = "".join(f"<div class=tile><b>{html.escape(v)}</b><span>{html.escape(k)}</span></div>" for k, v in tiles)
    return f"<div class=tiles>{cells}</div>"


def _section(name: str, rows: Mapping[str, Any]) -> str:
    cells = "".join(f"<tr><th>{html.escape(str(k))}<td>{html.escape(str(v))}" for k, v in rows.items())
    return f"<section><h2>{html.escape(name)}</h2><table>{cells}</table></section>"


def _curves(steps: Sequence[StepReport]) -> str:
    """The curves as a PNG in a data URI."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.4), dpi=144, layout="constrained")
    loss, rate = figure.subplots(1, 2, width_ratios=[2, 1])
    x = [s.step for s in steps]
    loss.plot(x, [s.loss for s in steps], color=ACCENT, lw=1.6, label="training, each update")
    held_out = [(s.step, s.eval_loss) for s in steps if s.eval_loss is not None]
    if held_out:
        loss.plot(*zip(*held_out), "o", color="#c8553d", ms=6, label="held out")
    loss.legend(frameon=False, labelcolor=INK)
    loss.set_title("loss", loc="left", color=INK)
    rate.plot(x, [s.lr for s in steps], color=QUIET, lw=1.6)
    rate.set_title("learning rate", loc="left", color=INK)
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    for axes in (loss, rate):
        axes.set_xlabel("update", color=QUIET)
        axes.set_ylim(bottom=0)
        axes.tick_params(colors=QUIET)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
