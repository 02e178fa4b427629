"""How near answers come to the expected ones."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any


def exact_matches(answers: Sequence[str], expected: Sequence[str], asides: Sequence[str] = ()) -> list[bool]:
    """For each answer, whether it is the expected text; a closing aside (an interjection, say) counts on neither side."""
    return [strip_aside(a, asides) == strip_aside(e, asides) for a, e in zip(answers, expected, strict=True)]


def strip_aside(text: str, asides: Sequence[str]) -> str:
    """The text without white space at its ends and without one closing aside."""
    text = " ".join(text.split())
    for aside in sorted(asides, key=len, reverse=True):
        if aside and text.endswith(aside):
            return text.removesuffix(aside).rstrip()
    return text


def chrf(answer: str, expected: str, asides: Sequence[str] = ()) -> float:
    """chrF2 of one answer, from 0 to 100: how many character sequences of up to 6 the two share (Popović, "chrF: character
    n-gram F-score for automatic MT evaluation", WMT 2015), as sacrebleu computes it. Asides count on neither side."""
    answer, expected = strip_aside(answer, asides), strip_aside(expected, asides)
    if answer == expected:
        return 100.0  # also where there are no characters to share
    return float(_chrf().sentence_score(answer, [expected]).score)


@lru_cache(maxsize=1)
def _chrf() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF()
