"""A preview as a page: one file, no script, nothing fetched, all text from outside escaped; light and dark, wide and narrow."""

import html

from tunesmith.cli.preview_words import before_command, facts_of, found_in, lengths_line, place, sign_of
from tunesmith.cli.visible import on_one_line, visible
from tunesmith.data.findings import Finding
from tunesmith.data.lengths import Bar
from tunesmith.data.pieces import Piece
from tunesmith.data.preview import GOOD, LOOK, Preview, ShownRow


def page_of(seen: Preview, command: str) -> str:
    """The page. ``command``: what to type next."""
    title = f"{seen.model} on {seen.data}"
    bars = _histogram(seen) if seen.lengths else ""
    rows = "".join(map(_row, seen.shown))
    tokens = f"<section><h2>Rows as tokens</h2>{_LEGEND}{rows}</section>" if rows else ""
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width,initial-scale=1'>"
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<meta name=color-scheme content='light dark'><title>{_text(title)}</title><style>{_STYLE}</style>"
        f"<main><h1>{_text(title)}</h1>{_verdict(seen, command)}{_facts(seen)}{tokens}{bars}{_findings(seen)}</main></html>\n"
    )


def _text(text: str) -> str:
    """Escaped twice over: nothing unseen, nothing that is markup."""
    return html.escape(on_one_line(text))


def _verdict(seen: Preview, command: str) -> str:
    kind = {GOOD: "good", LOOK: "look"}.get(seen.verdict.word, "stop")
    reasons = "".join(f"<li>{_text(reason)}" for reason in seen.verdict.reasons)
    fix = f"<p><b>{_text(seen.verdict.fix)}</b>" if seen.verdict.fix else ""
    then = f"{before_command(seen.verdict)}: <code>{_text(command)}</code>"
    return (
        f"<section class='verdict {kind}'><h2>{_text(seen.verdict.word.capitalize())}</h2>"
        f"{f'<ul>{reasons}</ul>' if reasons else ''}{fix}<p class=next>{then}</section>"
    )


def _facts(seen: Preview) -> str:
    rows = "".join(f"<dt>{_text(name)}<dd>{_text(line)}" for name, line in facts_of(seen).items())
    return f"<section><dl>{rows}</dl></section>"


def _row(row: ShownRow) -> str:
    about = f"{row.tokens:,} tokens, {row.trained:,} of them trained"
    return f"<h3>{_text(place(row.where))} <small>{about}</small></h3><p class=tokens>{''.join(map(_piece, row.pieces))}</p>"


def _piece(piece: Piece) -> str:
    kind = " ".join(word for word, holds in (("t", piece.trained), ("s", piece.special), ("c", piece.cut)) if holds)
    gap = f"<i> … {piece.skipped:,} tokens … </i>" if piece.skipped else ""
    ids = ", ".join(map(str, piece.ids))
    text = html.escape(visible(piece.text.replace("\r\n", "\n").replace("\t", "⇥")).replace("\n", "⏎\n"))
    return f"{gap}<span{f' class={kind!r}' if kind else ''} title='{ids}'>{text}</span>"


def _histogram(seen: Preview) -> str:
    assert seen.lengths is not None
    most = max(bar.rows for bar in seen.lengths.bars)
    limit = seen.cut.max_length if seen.cut else None
    rows = "".join(_bar(bar, most, limit is not None and bar.low > limit) for bar in seen.lengths.bars)
    return f"<section><h2>Lengths</h2><p>{_text(lengths_line(seen))}</p><table class=bars>{rows}</table></section>"


def _bar(bar: Bar, most: int, cut: bool) -> str:
    span = f"{bar.low:,}–{bar.high:,}" if bar.high > bar.low else f"{bar.low:,}"
    width = max(100 * bar.rows / most, 0.5) if bar.rows else 0
    label = f"{bar.rows:,}{' cut' if cut and bar.rows else ''}"
    style = f"width:{width:.1f}%"
    return f"<tr><th>{span}<td><div class='bar{' over' if cut else ''}' style='{style}'></div><td class=n>{label}"


def _findings(seen: Preview) -> str:
    if not seen.findings:
        return ""
    return f"<section><h2>Looked for</h2>{''.join(map(_finding, seen.findings))}</section>"


def _finding(finding: Finding) -> str:
    sign = sign_of(finding)
    kind = {"!": "look", "✓": "good"}.get(sign, "some")
    head = f"<b class=sign>{sign}</b> {_text(finding.title)} <small>{_text(found_in(finding))}</small>"
    if not finding.rows:
        return f"<p class='finding {kind}'>{head}</p>"
    sights = "".join(f"<dt>{_text(place(sight.where))}<dd>{_text(sight.text)}" for sight in finding.rows)
    more = f"<p class=quiet>… {finding.count - len(finding.rows):,} more" if finding.count > len(finding.rows) else ""
    why = f"<p class=quiet>{_text(finding.why[0].upper() + finding.why[1:])}. {_text(finding.fix)}</p>"
    is_open = " open" if finding.worth_a_look else ""
    return f"<details class='finding {kind}'{is_open}><summary>{head}</summary>{why}<dl class=sights>{sights}</dl>{more}</details>"


_LEGEND = (
    "<p class='tokens legend'><span class=t>trained</span> <span>context</span> <span class=s>special</span> "
    "<span class='t s'>stop token</span> <span class=c>cut at max_length</span></p>"
)
_STYLE = """
:root{--ink:#1d2433;--quiet:#667085;--page:#f6f5f1;--card:#fff;--line:#e8e5de;--green:#2f6f4f;--amber:#96600a;--red:#b3261e;
--trained:#c9ebd2;--trained2:#b2dfc0;--stop:#7cc898;--context:#f1f0ec;--special:#e7ddf5;--special-ink:#5f3d94;--cut:#f9d3cf}
@media(prefers-color-scheme:dark){:root{--ink:#e6e8ee;--quiet:#98a1b3;--page:#14171d;--card:#1d2129;--line:#313744;--green:#7ed3a0;
--amber:#f0bd5c;--red:#ff8f85;--trained:#1f4a33;--trained2:#27593e;--stop:#37875a;--context:#262b35;--special:#3a3054;
--special-ink:#cdb8f2;--cut:#5a2a28}}
*{box-sizing:border-box} body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:1000px;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.5rem;margin:.2rem 0 1rem;overflow-wrap:anywhere} h2{font-size:1.1rem;margin:0 0 .6rem}
h3{font-size:.9rem;margin:1.2rem 0 .4rem;overflow-wrap:anywhere} small,.quiet{color:var(--quiet);font-weight:400}
small{font-size:.85em}
section{background:var(--card);border-radius:10px;padding:1rem 1.2rem;margin-top:1rem}
.verdict{border-left:6px solid var(--green)} .verdict.look{border-color:var(--amber)} .verdict.stop{border-color:var(--red)}
.verdict h2{font-size:1.4rem;color:var(--green)} .look h2{color:var(--amber)} .stop h2{color:var(--red)}
.verdict ul{margin:.2rem 0;padding-left:1.2rem} .verdict p{margin:.6rem 0 0}
code{font:.9em ui-monospace,monospace;overflow-wrap:anywhere}
.next code{background:var(--context);padding:.15rem .4rem;border-radius:5px}
dl{display:grid;grid-template-columns:9rem 1fr;gap:.35rem 1rem;margin:0} dt{color:var(--quiet);overflow-wrap:anywhere}
dd{margin:0;overflow-wrap:anywhere}
.tokens{font:.88rem/1.85 ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere;margin:0}
.tokens span{background:var(--context);padding:.1rem 0;border-radius:3px;box-shadow:inset -1px 0 var(--card)}
.tokens .t{background:var(--trained)} .tokens .t:nth-child(even){background:var(--trained2)}
.tokens .s{background:var(--special);color:var(--special-ink)} .tokens .t.s{background:var(--stop);color:var(--ink);font-weight:700}
.tokens .c.c.c{background:var(--cut);color:var(--ink);text-decoration:line-through;font-weight:400} .tokens i{color:var(--quiet)}
.legend span{padding:.15rem .5rem}
.bars{border-collapse:collapse;width:100%;font-size:.85rem} .bars th{font-weight:400;color:var(--quiet);text-align:right;
white-space:nowrap;padding:.1rem .6rem .1rem 0;width:1%} .bars .n{color:var(--quiet);white-space:nowrap;padding-left:.5rem;width:1%}
.bar{background:var(--green);height:.95rem;border-radius:2px} .bar.over{background:var(--red)}
.finding{margin:0;padding:.4rem 0;border-top:1px solid var(--line)} h2+.finding{border-top:0}
summary{cursor:pointer;list-style:none} summary::-webkit-details-marker{display:none}
summary::after{content:' ▸';color:var(--quiet)} [open]>summary::after{content:' ▾'}
.sign{display:inline-block;width:1.2rem;color:var(--quiet)} .good .sign{color:var(--green)} .finding.look .sign{color:var(--amber)}
details p{margin:.3rem 0 .5rem} .sights{font-size:.9rem;grid-template-columns:minmax(8rem,14rem) 1fr}
@media(max-width:40rem){dl,.sights{grid-template-columns:1fr;gap:.1rem} dd{margin-bottom:.5rem} section{padding:.8rem}}
"""
