"""One word for what tuning did to the answers, and one for what it cost. The rules are those of docs/judge.md."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tunesmith.generate.measure import Measure

DECIDING = ("chrF", "exact match", "loss on answers")
"""What is answered goes before what would have been likely."""
NOTICED, SEVERE = 1.1, 2.0
"""Perplexity on general text, as a multiple of the base's, from which forgetting is some, and severe."""


@dataclass(frozen=True)
class Verdict:
    """word: better, no difference, worse or too few rows; of forgetting none, some or severe. reason: the figures behind it."""

    word: str
    reason: str


def verdict(measures: Mapping[str, Measure]) -> Verdict:
    """Worse if answers stop properly less often; or else what the first measure of `DECIDING` says that differs."""
    stops = measures.get("stops properly")
    if stops and stops.word == "worse":
        return Verdict("worse", f"answers stop properly less often: {figures(stops)}")
    known = [measures[name] for name in DECIDING if name in measures]
    for one in known:
        if one.differs:
            return Verdict(one.word, f"{one.name} {figures(one)}")
    if all(one.change is None for one in known):
        rows = known[0].rows if known else 0
        return Verdict("too few rows", "one row tells nothing" if rows == 1 else f"{rows} rows tell nothing")
    return Verdict("no difference", "no interval excludes zero: " + ", ".join(f"{one.name} {figures(one)}" for one in known))


def forgetting(text: Measure, suites: Measure | None) -> Verdict:
    """What general text and the suites say: the graver of the two.

    Args:
        text: mean loss on general text, in nats a token. suites: share of all items right, None if they were not asked.
    """
    ratio = math.exp(min(text.after - text.before, 700))
    lost = suites is not None and suites.word == "worse"
    worse = text.word == "worse"
    said = f"perplexity on general text × {ratio:.3g}"
    said += f", suites {figures(suites)}" if suites else " (suites not asked)"
    if (worse and ratio >= SEVERE) or (lost and suites is not None and suites.after <= suites.before / 2):
        return Verdict("severe", said)
    return Verdict("some" if lost or (worse and ratio >= NOTICED) else "none", said)


def figures(one: Measure) -> str:
    """Before and after, and the interval of the difference."""
    both = f"{shown(one.before, one)} → {shown(one.after, one)}"
    return both if one.change is None else f"{both} ({interval(one)})"


def interval(one: Measure) -> str:
    """The difference's interval, empty if there is none."""
    if one.change is None:
        return ""
    return f"{shown(one.change.low, one, signed=True)} to {shown(one.change.high, one, signed=True)}"


def shown(value: float, one: Measure, signed: bool = False) -> str:
    """A figure of a measure as it is read."""
    sign = "+" if signed else ""
    match one.unit:
        case "share":
            return f"{100 * value:{sign}.0f} %"
        case "nats":
            return f"{value:{sign}.3f}"
        case "ratio":
            return f"{value:{sign}.3g}"
    return f"{value:{sign}.1f}"
