"""A comparison as a page, and its parts for the report of a run: one file, no script, nothing fetched, everything escaped."""

import html
from collections.abc import Mapping, Sequence

from tunesmith.generate.compare import ComparedRow, Comparison, Side
from tunesmith.generate.measure import Measure
from tunesmith.generate.verdict import Verdict, interval, shown

MOST = 400
"""Rows on a page; of more, those that changed most in either direction."""


def page_of(compared: Comparison, title: str, facts: Mapping[str, str]) -> str:
    """The whole page. ``facts``: what was compared on what."""
    about = "".join(f"<dt>{html.escape(name)}<dd>{html.escape(value)}" for name, value in facts.items())
    return page(title, f"{judgement(compared)}{measures_table(compared)}<section><dl>{about}</dl></section>{rows_table(compared)}")


def page(title: str, body: str, pictures: bool = False) -> str:
    """The frame of a page. ``pictures``: it holds some, as data URIs."""
    policy = "default-src 'none'; style-src 'unsafe-inline'" + ("; img-src data:" if pictures else "")
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width,initial-scale=1'>"
        f'<meta http-equiv=Content-Security-Policy content="{policy}"><meta name=color-scheme content="light dark">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style><main><h1>{html.escape(title)}</h1>{body}</main></html>\n"
    )


def judgement(compared: Comparison) -> str:
    """Both verdicts, and what the reader should know."""
    notes = "".join(f"<p class=quiet>{html.escape(note)}" for note in compared.notes)
    both = _verdict("Tuned against base", compared.verdict) + _verdict("Forgetting", compared.forgetting)
    return f"<section class=two>{both}{notes}</section>"


def _verdict(name: str, said: Verdict) -> str:
    kind = {"better": "good", "none": "good", "worse": "bad", "severe": "bad"}.get(said.word, "look")
    return f"<div class='verdict {kind}'><h2>{name}</h2><b>{html.escape(said.word)}</b><p>{html.escape(said.reason)}</div>"


def measures_table(compared: Comparison) -> str:
    """Every measure with its interval."""
    head = "<tr><th><th>base<th>tuned<th>change, 95 % interval<th>rows<th>"
    parts = (("Held-out rows", compared.measures), ("What it could do before", compared.abilities))
    return "".join(
        f"<section><h2>{name}</h2><table class=figures>{head}{''.join(map(_measure, some))}</table></section>"
        for name, some in parts
        if some
    )


def _measure(one: Measure) -> str:
    kind = {"better": "good", "worse": "bad"}.get(one.word, "quiet")
    return (
        f"<tr><th>{html.escape(one.name)}<td>{shown(one.before, one)}<td>{shown(one.after, one)}<td>{interval(one) or '–'}"
        f"<td>{one.rows:,}<td class={kind}>{html.escape(one.word)}"
    )


def rows_table(compared: Comparison) -> str:
    """The rows, sorted by change: those that became worse first."""
    rows: Sequence[ComparedRow] = compared.by_gain
    if not rows:
        return ""
    left_out = len(rows) - MOST
    if left_out > 0:
        rows = [*rows[: MOST // 2], *rows[-MOST // 2 :]]
    note = f"<p class=quiet>{left_out:,} rows that changed less are left out." if left_out > 0 else ""
    head = "<tr><th>chrF<th>asked<th>before<th>after<th>expected"
    return (
        "<section><h2>Before and after</h2><p class=quiet>Sorted by change in chrF, what gained least first. Green: the "
        f"expected answer.{note}<table class=rows>{head}{''.join(map(_row, rows))}</table></section>"
    )


def _row(row: ComparedRow) -> str:
    change = row.gain[0]
    kind = "quiet" if abs(change) < 1 else "good" if change > 0 else "bad"
    return (
        f"<tr><td class='n {kind}' title='{html.escape(row.where, quote=True)}'>{row.before.chrf:.0f} → {row.after.chrf:.0f}"
        f"<td>{html.escape(row.question)}{_answer(row.before)}{_answer(row.after)}<td>{html.escape(row.expected)}"
    )


def _answer(side: Side) -> str:
    cut = "" if side.stopped else " <small>(did not stop)</small>"
    return f"<td class={'good' if side.right else 'other'}>{html.escape(side.text)}{cut}"


_STYLE = """
:root{--ink:#1d2433;--quiet:#667085;--page:#f6f5f1;--card:#fff;--line:#e8e5de;--green:#2f6f4f;--amber:#96600a;--red:#b3261e}
@media(prefers-color-scheme:dark){:root{--ink:#e6e8ee;--quiet:#98a1b3;--page:#14171d;--card:#1d2129;--line:#313744;
--green:#7ed3a0;--amber:#f0bd5c;--red:#ff8f85}}
*{box-sizing:border-box} body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1120px;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.6rem;margin:.2rem 0 1rem;overflow-wrap:anywhere} h2{font-size:1.05rem;margin:0 0 .5rem}
section{background:var(--card);border-radius:10px;padding:1rem 1.2rem;margin-top:1rem;overflow-x:auto}
img{width:100%;background:#fff;border-radius:10px;padding:.8rem}
.tiles{display:flex;flex-wrap:wrap;gap:.8rem;margin-bottom:1rem}
.tile{background:var(--card);border-radius:10px;padding:.7rem 1.1rem;flex:1 1 9rem}
.tile b{display:block;font-size:1.35rem;white-space:nowrap} .tile span{color:var(--quiet);font-size:.85rem}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(20rem,100%),1fr));gap:1rem} .grid section{margin:1rem 0 0}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(18rem,100%),1fr));gap:1rem 2rem}
.two>p{grid-column:1/-1;margin:0} .verdict{border-left:6px solid var(--amber);padding-left:1rem}
.verdict.good{border-color:var(--green)} .verdict.bad{border-color:var(--red)}
.verdict h2{color:var(--quiet);font-size:.9rem;font-weight:400;margin:0} .verdict b{font-size:1.5rem} .verdict p{margin:.2rem 0 0}
dl{display:grid;grid-template-columns:9rem 1fr;gap:.35rem 1rem;margin:0} dt{color:var(--quiet)} dd{margin:0;overflow-wrap:anywhere}
table{border-collapse:collapse;width:100%} th,td{text-align:left;vertical-align:top;padding:.35rem .8rem .35rem 0;
border-top:1px solid var(--line);overflow-wrap:anywhere;unicode-bidi:isolate} tr:first-child>*{border-top:0}
th{font-weight:600;color:var(--quiet)} .grid th,.figures th{white-space:nowrap}
.figures td{font-variant-numeric:tabular-nums;white-space:nowrap} .rows td{min-width:10rem;white-space:pre-wrap;width:24%}
.rows td.n{min-width:5rem;width:4%;white-space:nowrap;font-variant-numeric:tabular-nums}
.good{color:var(--green)} td.good{font-weight:600} .bad{color:var(--red)} .verdict.good,.verdict.bad{color:inherit}
.quiet,small{color:var(--quiet)} small{white-space:nowrap}
@media(max-width:40rem){dl{grid-template-columns:1fr;gap:.1rem} section{padding:.8rem}}
"""
