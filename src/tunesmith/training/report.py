"""report.html: one self-contained page with what was trained, how it went, and what changed."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.training.loop import StepReport

INK, ACCENT, QUIET, GOOD = "#1d2433", "#2f6f4f", "#6b7385", "#2f6f4f"


@dataclass(frozen=True)
class Change:
    """A question with the answers before and after training; expected and right where known."""

    question: str
    before: str
    after: str
    expected: str
    right_before: bool
    right_after: bool


def write_report(
    path: Path, title: str, facts: Mapping[str, Mapping[str, Any]], steps: Sequence[StepReport], changes: Sequence[Change]
) -> None:
    """Write the page. ``facts``: section title to rows of a table. Everything from outside is escaped."""
    sections = "".join(_section(name, rows) for name, rows in facts.items())
    table = _changes(changes) if changes else ""
    path.write_text(
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style><main><h1>{html.escape(title)}</h1>"
        f"{_headline(steps, changes)}<img alt='loss and learning rate over the updates' src='{_curves(steps)}'>"
        f"{table}<div class=grid>{sections}</div></main></html>",
        encoding="utf-8",
    )


def _headline(steps: Sequence[StepReport], changes: Sequence[Change]) -> str:
    last = steps[-1]
    held_out = [s.eval_loss for s in steps if s.eval_loss is not None]
    tiles = [("updates", f"{last.step}"), ("loss, first → last", f"{steps[0].loss:.2f} → {last.loss:.2f}")]
    if held_out:
        tiles.append(("held-out loss", f"{held_out[-1]:.3f}"))
    if changes:
        before, after = (sum(getattr(c, side) for c in changes) for side in ("right_before", "right_after"))
        tiles.append(("right answers, before → after", f"{before} → {after} of {len(changes)}"))
    tiles.append(("training time", f"{sum(s.seconds for s in steps):.0f} s"))
    cells = "".join(f"<div class=tile><b>{html.escape(v)}</b><span>{html.escape(k)}</span></div>" for k, v in tiles)
    return f"<div class=tiles>{cells}</div>"


def _section(name: str, rows: Mapping[str, Any]) -> str:
    cells = "".join(f"<tr><th>{html.escape(str(k))}<td>{html.escape(str(v))}" for k, v in rows.items())
    return f"<section><h2>{html.escape(name)}</h2><table>{cells}</table></section>"


def _changes(changes: Sequence[Change]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(c.question)}<td class=quiet>{html.escape(c.before)}"
        f"<td class={'right' if c.right_after else 'other'}>{html.escape(c.after)}<td>{html.escape(c.expected)}"
        for c in changes
    )
    head = "<tr><th>asked<th>before<th>after<th>expected"
    return f"<section><h2>Before and after, on rows never trained on</h2><table class=wide>{head}{rows}</table></section>"


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


_STYLE = f"""
body{{margin:0;background:#f6f5f1;color:{INK};font:15px/1.5 system-ui,sans-serif}}
main{{max-width:1080px;margin:0 auto;padding:2rem 1.5rem 4rem}}
h1{{font-size:1.7rem;margin:.2rem 0 1rem}} h2{{font-size:1.05rem;margin:0 0 .6rem}}
img{{width:100%;background:#fff;border-radius:10px;padding:.8rem;box-sizing:border-box}}
.tiles{{display:flex;flex-wrap:wrap;gap:.8rem;margin-bottom:1rem}}
.tile{{background:#fff;border-radius:10px;padding:.7rem 1.1rem;flex:1 1 9rem}}
.tile b{{display:block;font-size:1.35rem;white-space:nowrap}} .tile span{{color:{QUIET};font-size:.85rem}}
section{{background:#fff;border-radius:10px;padding:1rem 1.2rem;margin-top:1rem;overflow-x:auto}}
.grid{{display:grid;grid-template-columns:repeat(auto-fit,minmax(20rem,1fr));gap:1rem}} .grid section{{margin:1rem 0 0}}
table{{border-collapse:collapse;width:100%}} th,td{{text-align:left;vertical-align:top;padding:.3rem .8rem .3rem 0;
border-top:1px solid #eceae4;overflow-wrap:anywhere}} tr:first-child>*{{border-top:0}}
th{{font-weight:600;color:{QUIET};white-space:nowrap}} .wide td{{width:25%}}
.quiet{{color:{QUIET}}} .right{{color:{GOOD};font-weight:600}} .other{{color:#a4511f}}
"""
