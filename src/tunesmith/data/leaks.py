"""Held-out rows that are also trained on: what they measure is memory, not learning."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tunesmith.data.duplicates import near_groups


@dataclass(frozen=True)
class Leaks:
    """Pairs (held-out row, training row) of indices; a held-out row stands in one of the three at most.

    same: the same conversation. asked: the same question with another answer. near: nearly the same question.
    """

    same: tuple[tuple[int, int], ...]
    asked: tuple[tuple[int, int], ...]
    near: tuple[tuple[int, int], ...]


def find_leaks(
    trained: Sequence[tuple[str, str]],
    held_out: Sequence[tuple[str, str]],
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> Leaks:
    """Leaks of training rows into held-out ones, each row given as (question, answer), normalised."""
    conversations = {row: i for i, row in reversed(list(enumerate(trained)))}
    questions = {row[0]: i for i, row in reversed(list(enumerate(trained)))}
    same = {h: conversations[row] for h, row in enumerate(held_out) if row in conversations}
    asked = {h: questions[row[0]] for h, row in enumerate(held_out) if h not in same and row[0] and row[0] in questions}
    rest = [h for h in range(len(held_out)) if h not in same and h not in asked and held_out[h][0]]
    near = _near([row[0] for row in trained], [held_out[h][0] for h in rest], watch) if rest else {}
    return Leaks(tuple(same.items()), tuple(asked.items()), tuple((rest[i], t) for i, t in near.items()))


def _near(trained: Sequence[str], held_out: Sequence[str], watch: Callable[[int, int], None]) -> dict[int, int]:
    """Held-out questions that are nearly alike to a training question, and to which."""
    found = {}
    for group in near_groups([*trained, *held_out], watch, since=len(trained)):
        among = [i for i in group if i < len(trained)]
        found.update({i - len(trained): among[0] for i in group if i >= len(trained) and among})
    return dict(sorted(found.items()))
