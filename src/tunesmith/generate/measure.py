"""What is compared: one figure on either side, the difference, and how sure that is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tunesmith.generate.bootstrap import MIN_ROWS, Interval, paired_interval

Unit = Literal["nats", "ratio", "share", "points", "tokens"]
Word = Literal["better", "worse", "no difference", "too few rows", ""]


@dataclass(frozen=True)
class Measure:
    """name: what is measured. unit: of its figures. good: 1 if more is better, -1 if less is, 0 if neither. before, after: the
    means. rows: that they are taken over. change: 95 % interval of after less before; None for too few rows, or where it
    follows from another measure."""

    name: str
    unit: Unit
    good: int
    before: float
    after: float
    rows: int
    change: Interval | None

    @property
    def word(self) -> Word:
        """What the interval says: nothing is called better or worse unless it excludes zero. Empty where neither is meant."""
        if not self.good or (self.change is None and self.rows >= MIN_ROWS):
            return ""
        if self.change is None:
            return "too few rows"
        if not self.change.excludes_zero:
            return "no difference"
        return "better" if self.change.low * self.good > 0 else "worse"

    @property
    def differs(self) -> bool:
        return self.change is not None and self.change.excludes_zero


def measure(
    name: str, unit: Unit, good: int, before: Sequence[float], after: Sequence[float], weights: Sequence[float] | None = None
) -> Measure:
    """A measure of the same rows on both sides; at least one row. weights: of the rows, such as their tokens."""
    weight = [1.0] * len(before) if weights is None else weights
    means = [sum(v * w for v, w in zip(side, weight)) / sum(weight) for side in (before, after)]
    return Measure(name, unit, good, means[0], means[1], len(before), paired_interval(before, after, weights))
