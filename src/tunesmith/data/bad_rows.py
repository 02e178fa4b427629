"""What becomes of rows that cannot be trained on: the first one ends the run, or they are left out, counted and told."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain, islice

from tunesmith.errors import DataError, RowError

OnBadRow = Callable[[RowError], None]
"""Told of every row at fault; raises, or returns and the row is left out."""

KEPT = 5
"""Reasons kept, the first ones."""


def refuse(error: RowError) -> None:
    """The default: the first row at fault ends the run, and its message says how to go on without such rows."""
    raise RowError(error.what, f"{error.fix} To leave such rows out and count them: --on-bad-row skip.") from error


@dataclass(frozen=True)
class BadRowFacts:
    """count: rows left out. reasons: the first few, each with file and line."""

    count: int = 0
    reasons: tuple[str, ...] = ()

    def describe(self) -> str:
        """One line for the user, empty if no row was left out."""
        if not self.count:
            return ""
        rows = "1 bad row" if self.count == 1 else f"{self.count:,} bad rows"
        more = f" And {self.count - len(self.reasons):,} more." if self.count > len(self.reasons) else ""
        return f"{rows} left out. {' '.join(self.reasons)}{more}"

    def check_some_left(self, name: str, left: int) -> None:
        """Raises DataError if nothing is left to train on."""
        if self.count and not left:
            every = f"All {self.count:,} rows of {name} are bad. The first" if self.count > 1 else f"The only row of {name} is bad"
            raise DataError(f"{every}: {self.reasons[0]}", "Mend the rows, or name other columns.")


def together(facts: Iterable[BadRowFacts]) -> BadRowFacts:
    """Bad rows of several parts of the data, in order."""
    every = list(facts)
    reasons = tuple(islice(chain.from_iterable(one.reasons for one in every), KEPT))
    return BadRowFacts(sum(one.count for one in every), reasons)


class BadRows:
    """Leaves rows at fault out, counts them and keeps the first reasons; with ``on_bad_row`` "error" the first one raises."""

    def __init__(self, on_bad_row: str = "skip") -> None:
        self.skip = on_bad_row == "skip"
        self.count = 0
        self.reasons: list[str] = []

    def __call__(self, error: RowError) -> None:
        if not self.skip:
            refuse(error)
        self.count += 1
        if len(self.reasons) < KEPT:
            self.reasons.append(error.what)

    @property
    def facts(self) -> BadRowFacts:
        """What happened so far."""
        return BadRowFacts(self.count, tuple(self.reasons))

    def taken(self) -> BadRowFacts:
        """The same, and counting begins anew."""
        facts, self.count, self.reasons = self.facts, 0, []
        return facts

    def check_some_left(self, name: str, left: int) -> None:
        """As `BadRowFacts.check_some_left`."""
        self.facts.check_some_left(name, left)
