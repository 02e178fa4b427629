"""How many answers are the expected ones."""

from collections.abc import Sequence


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
