"""Every error tunesmith raises on purpose. Each message says what happened, why, and what to do next.

TunesmithError              catch this to catch them all; the command line turns it into one paragraph, exit code 2
├── RecipeError             a setting is unknown, has a wrong value, or contradicts another
├── DataError               the rows cannot be read or cannot be trained on
│   └── RowError            one row is at fault; `on_bad_row: skip` leaves it out and counts it
├── ModelError              the base model or its tokenizer cannot be used
├── AdapterError            the adapter cannot be attached, saved or loaded
├── MachineError            this machine cannot do what was asked (memory, device, optimizer)
├── RunError                the run folder is missing, taken or incomplete
├── TrainingError           training went wrong and was stopped before it could do harm
└── HubError                the hub refused, or could not be reached
"""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path


class TunesmithError(Exception):
    """``what`` happened, in the user's own terms, and the ``fix``: the next thing to do. ``what`` ends as a sentence does, also if
    it ends with words of somebody else's."""

    def __init__(self, what: str, fix: str) -> None:
        what += "" if what.rstrip().endswith((".", "!", "?", ":", "…")) else "."
        super().__init__(f"{what} {fix}")
        self.what = what
        self.fix = fix


class RecipeError(TunesmithError):
    """A setting is unknown, has a wrong value, or contradicts another one."""


class DataError(TunesmithError):
    """The rows cannot be read, or training on them would teach nothing."""


class RowError(DataError):
    """One row is at fault, and the others can be trained on without it."""


class ModelError(TunesmithError):
    """The base model or its tokenizer cannot be used."""


class AdapterError(TunesmithError):
    """The adapter cannot be attached, saved or loaded."""


class MachineError(TunesmithError):
    """This machine cannot do what the recipe asks for."""


class RunError(TunesmithError):
    """A run folder is missing, already taken, or incomplete."""


class TrainingError(TunesmithError):
    """Training was stopped because going on would have produced nonsense."""


class HubError(TunesmithError):
    """The hub refused, or could not be reached."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`` (did you mean X?)`` for the known name that `near` finds, or an empty string."""
    return did_you_mean(near(name, known))


def did_you_mean(name: str | None) -> str:
    """The same for a name that was found already, if there was one."""
    return f" (did you mean {name}?)" if name else ""


def near(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant: one that is spelled much like it, or the shortest that it is a whole word of
    (alpha: lora_alpha). None if there is no such name: a guess that is wrong is worse than none."""
    names = list(known)
    likest = max(names, key=lambda one: _likeness(name, one), default="")
    if _likeness(name, likest) >= 0.7:
        return likest
    return min((one for one in names if name in re.findall(r"[^\W_]+", one)), key=len, default=None)


def _likeness(a: str, b: str) -> float:
    """From 0 to 1; that files are of one kind makes their names no more alike."""
    ending = Path(a).suffix
    if ending and b.endswith(ending):
        a, b = a.removesuffix(ending), b.removesuffix(ending)
    return difflib.SequenceMatcher(None, a, b).ratio()
