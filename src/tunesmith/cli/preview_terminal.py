"""A preview on a terminal: rows as coloured tokens, tables, the verdict. Without colour, marks stand for it."""

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tunesmith.cli.preview_words import before_command, facts_of, found_in, lengths_line, place, sign_of
from tunesmith.cli.visible import on_one_line, visible
from tunesmith.data.findings import Finding
from tunesmith.data.lengths import Bar, Cut
from tunesmith.data.pieces import Piece
from tunesmith.data.preview import GOOD, LOOK, Preview, ShownRow

STYLES = {
    "trained": ("black on #8fd19e", "black on #b9e5c2"),
    "context": ("", "dim"),
    "special": ("#b48ead", "#b48ead"),
    "trained special": ("bold black on #5fb878", "bold black on #5fb878"),
    "cut": ("strike black on #f2a6a0", "strike black on #f7c8c4"),
}
"""Two shades each, so that neighbouring tokens can be told apart."""
MARKS = {"trained": "⟦⟧", "trained special": "⟦⟧", "cut": "✂✂"}
"""What encloses a run of tokens where there is no colour."""


def kind_of(piece: Piece) -> str:
    """What happens to a piece, in a word."""
    if piece.cut:
        return "cut"
    return " ".join(word for word, holds in (("trained", piece.trained), ("special", piece.special)) if holds) or "context"


def show(seen: Preview, command: str, console: Console) -> None:
    """Print all of it."""
    plain = console.color_system is None
    console.print(Text(f"{visible(seen.model)} on {visible(seen.data)}", "bold"))
    if seen.shown:
        console.print(legend(plain))
    for row in seen.shown:
        console.print()
        console.print(_title(row))
        console.print(tokens(row, plain))
    if seen.lengths:
        console.print()
        console.print(Text("Lengths  ", "bold").append(lengths_line(seen), "not bold"))
        console.print(_histogram(seen.lengths.bars, seen.cut, min(console.width - 26, 60)))
    console.print()
    console.print(_facts(seen))
    if seen.findings:
        console.print()
        console.print(_findings(seen))
        _sights(seen, console)
    _verdict(seen, command, console)


def legend(plain: bool) -> Text:
    """What the colours, or the marks, mean."""
    if plain:
        return Text("⟦trained⟧ context and <special> tokens ✂cut at max_length✂")
    text = Text()
    for name in ("trained", "context", "special", "trained special", "cut"):
        words = {"cut": "cut at max_length", "trained special": "stop token"}.get(name, name)
        text.append(f" {words} ", STYLES[name][0]).append("  ")
    return text


def _title(row: ShownRow) -> Text:
    about = f" · {row.tokens:,} tokens, {row.trained:,} of them trained"
    return Text.assemble((place(row.where), "cyan"), (about, "dim"))


def tokens(row: ShownRow, plain: bool) -> Text:
    """A row's text, each token in the style of what happens to it."""
    text, before = Text(), ""
    for number, piece in enumerate(row.pieces):
        kind = kind_of(piece)
        if piece.skipped:
            text.append(f" … {piece.skipped:,} tokens … ", "dim italic")
        if plain and MARKS.get(kind) != MARKS.get(before):
            text.append(MARKS.get(before, "  ")[1].strip() + MARKS.get(kind, "  ")[0].strip())
        shown = visible(piece.text.replace("\r\n", "\n").replace("\t", "⇥"))
        text.append(shown if plain else shown.replace("\n", "⏎\n"), None if plain else STYLES[kind][number % 2])
        before = kind
    if plain:
        text.append(MARKS.get(before, "  ")[1].strip())
    text.rstrip()
    return text


def _histogram(bars: tuple[Bar, ...], cut: Cut | None, width: int) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    most = max(bar.rows for bar in bars)
    for bar in bars:
        beyond = cut is not None and bar.low > cut.max_length
        block = "█" * max(round(bar.rows / most * width), 1) if bar.rows else ""
        span = f"{bar.low:,}–{bar.high:,}" if bar.high > bar.low else f"{bar.low:,}"
        label = f" {bar.rows:,}" + (" cut" if beyond and bar.rows else "")
        table.add_row(Text(span, "dim", justify="right"), Text(block, "red" if beyond else "green").append(label, "dim"))
    return table


def _facts(seen: Preview) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, line in facts_of(seen).items():
        table.add_row(Text(name, "cyan", no_wrap=True), Text(visible(line)))
    return table


def _findings(seen: Preview) -> Table:
    table = Table(title="Looked for", title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    for finding in seen.findings:
        sign = sign_of(finding)
        style = {"!": "bold yellow", "✓": "green"}.get(sign, "dim")
        table.add_row(Text(sign, style), Text(finding.title), Text(found_in(finding), "dim" if sign == "✓" else style))
    return table


def _sights(seen: Preview, console: Console) -> None:
    for finding in seen.findings:
        if finding.rows:
            console.print()
            console.print(_heading(finding))
            for sight in finding.rows:
                line = Text.assemble((f"  {place(sight.where)}  ", "cyan"), on_one_line(sight.text))
                if console.is_terminal:
                    console.print(line, no_wrap=True, overflow="ellipsis")
                else:  # whole, for whoever searches it
                    console.print(line, soft_wrap=True)
            if finding.count > len(finding.rows):
                console.print(Text(f"  … {finding.count - len(finding.rows):,} more", "dim"))


def _heading(finding: Finding) -> Text:
    text = Text(f"{finding.title[0].upper()}{finding.title[1:]}: ", "bold").append(
        f"{found_in(finding)}; {finding.why}. ", "not bold"
    )
    return text.append(finding.fix, "dim not bold")


def _indented(text: Text) -> Padding:
    return Padding(text, (0, 0, 0, 2), expand=False)


def _verdict(seen: Preview, command: str, console: Console) -> None:
    verdict = seen.verdict
    style = {GOOD: "bold green", LOOK: "bold yellow"}.get(verdict.word, "bold red")
    console.print()
    text = Text("Verdict: ").append(verdict.word, style).append(".", style)
    console.print(text)
    for reason in verdict.reasons:
        console.print(_indented(Text(visible(reason))))
    if verdict.fix:
        console.print(_indented(Text(visible(verdict.fix), "bold")))
    console.print(Text(f"{before_command(verdict)}: ").append(visible(command), "bold cyan"), soft_wrap=True)
