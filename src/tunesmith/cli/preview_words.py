"""A preview's numbers in words, the same on a terminal and on the page."""

from tunesmith.cli.visible import on_one_line
from tunesmith.data.findings import Finding
from tunesmith.data.lengths import Cut
from tunesmith.data.preview import MEASURED, WILL_NOT, Packing, Prefix, Preview, Verdict
from tunesmith.data.reading import MOST
from tunesmith.data.sources import BUNDLED


def facts_of(seen: Preview) -> dict[str, str]:
    """Name to one line: rows, what is cut, stop token, packing, prefix, system prompts, bad rows, what was sampled."""
    facts = {}
    if seen.rows or seen.bad.count:
        facts["rows"] = f"{seen.rows:,} to train on, {seen.held_out:,} held out" + (f"; {seen.read_as}" if seen.read_as else "")
    if seen.bad.count:
        more = " · …" if seen.bad.count > len(seen.bad.reasons) else ""
        facts["bad rows"] = f"{seen.bad.count:,}: " + " · ".join(seen.bad.reasons) + more
    if seen.notes:
        facts["to know"] = "; ".join(seen.notes)
    if seen.cut:
        facts["max_length"] = _cut(seen.cut)
        facts["stop token"] = _stop(seen.stop_token, seen.cut)
    if seen.packing:
        facts["packing"] = _packing(seen.packing)
    if seen.prefix:
        facts["shared prefix"] = _prefix(seen.prefix)
    if seen.system_prompts:
        facts["system prompts"] = _system(seen)
    if seen.rows > seen.looked_at >= MOST:
        facts["sampled"] = (
            f"{seen.looked_at:,} rows drawn from {seen.rows:,} were looked into; there are more duplicates than shown"
        )
    return facts


def lengths_line(seen: Preview) -> str:
    """Quantiles of the lengths, and whether all rows were measured."""
    lengths = seen.lengths
    assert lengths is not None
    drawn = f" ({lengths.measured:,} rows drawn)" if seen.rows > lengths.measured >= MEASURED else ""
    answers = f"; answers {lengths.answers:,} at the median"
    return f"median {lengths.median:,}, 95% within {lengths.p95:,}, longest {lengths.longest:,} tokens{answers}{drawn}"


def before_command(verdict: Verdict) -> str:
    """What stands before the command to type next: whether it mends what is wrong, or comes after it."""
    return "When that is mended" if verdict.word == WILL_NOT and not verdict.settings else "Next"


def place(where: str) -> str:
    """A row's name, that of bundled data without the folder it is installed in."""
    return on_one_line(where.removeprefix(f"{BUNDLED}/"))


def sign_of(finding: Finding) -> str:
    """``!`` worth a look, ``·`` found, ``✓`` not found, ``–`` not looked for, there being nothing to look at."""
    if not finding.looked_at:
        return "–"
    return "!" if finding.worth_a_look else "·" if finding.count else "✓"


def found_in(finding: Finding) -> str:
    """``12 of 1,059 rows (1.1%)``, or that there is none."""
    if not finding.looked_at:
        return "nothing to look at"
    if not finding.count:
        return f"none in {finding.looked_at:,} rows"
    return f"{finding.count:,} of {finding.looked_at:,} rows ({share(finding.count, finding.looked_at)})"


def share(part: int, whole: int) -> str:
    """A share as a percentage that is 0% or 100% only if it is."""
    percent = 100 * part / whole
    if 0 < percent < 0.1:
        return "<0.1%"
    return f"{min(percent, 99.9):.1f}%" if part < whole else "100%"


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def _cut(cut: Cut) -> str:
    if not cut.rows:
        if cut.shortest == cut.max_length:
            return f"{cut.max_length:,}, the shortest that cuts nothing"
        return f"{cut.max_length:,} cuts nothing; {cut.shortest:,} would do"
    tokens = (
        f"{cut.answer_tokens:,} of {cut.of_answer_tokens:,} answer tokens lost ({share(cut.answer_tokens, cut.of_answer_tokens)})"
    )
    whole = f", the whole answer in {_rows(cut.whole_answers)}" if cut.whole_answers else ""
    rows = f"{cut.rows:,} of {cut.of_rows:,} rows ({share(cut.rows, cut.of_rows)})"
    return f"{cut.max_length:,} cuts {rows}: {tokens}{whole}; {cut.shortest:,} cuts nothing"


def _stop(token: str, cut: Cut) -> str:
    drawn = " drawn" if cut.measured < cut.of_rows else ""
    rows = f"all {cut.measured:,} rows{drawn}" if cut.stops == cut.measured else f"{cut.stops:,} of {cut.measured:,} rows{drawn}"
    return f"{token} ends an answer and is trained in {rows}"


PACKED = {
    "bfd": "whole rows together (bfd)",
    "wrapped": "one stream of all rows, cut (wrapped)",
    "none": "each row by itself (none)",
}
"""Ways to pack, in words."""


def _packing(packing: Packing) -> str:
    each = f"{packing.per_row:.1f} examples each" if packing.per_row >= 1 else "less than one example each"
    return f"{PACKED[packing.strategy]}: {packing.packed_rows:,} packed rows, {each}, {packing.filled:.1%} of their length filled"


def _prefix(prefix: Prefix) -> str:
    if not prefix.tokens:
        return "rows begin with nothing in common worth sharing"
    effect = "saved" if prefix.on else "would be saved; shared_prefix is off"
    others = f" and {prefix.different - 1:,} other{'s' * (prefix.different > 2)}" if prefix.different > 1 else ""
    return f"{prefix.saved:.0%} of the tokens {effect}: {prefix.tokens:,} tokens{others}, {_short(prefix.text)}"


def _short(text: str, most: int = 90) -> str:
    line = on_one_line(text)
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _system(seen: Preview) -> str:
    prompts = dict(seen.system_prompts)
    none = prompts.pop("", 0)
    if not prompts:
        return "none in the rows; one among the tokens shown is the template's own" if seen.shown else "none in the rows"
    text, most = next(iter(prompts.items()))
    different = f"{len(prompts):,} different ones, the commonest" if len(prompts) > 1 else "one"
    without = f"; {_rows(none)} have none" if none else ""
    return f"{different} in {_rows(most)}: {_short(text)}{without}"
