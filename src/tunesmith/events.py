"""What a run tells whoever watches it: notes, progress, the plan, what was loaded, every update."""

from collections.abc import Callable
from dataclasses import dataclass

from tunesmith.base.catalog import ModelSource
from tunesmith.base.load import ComputeType
from tunesmith.data.dataset import Dataset
from tunesmith.data.loader import Loader
from tunesmith.plan.memory import Shape
from tunesmith.plan.plan import Plan
from tunesmith.recipe import Recipe
from tunesmith.training.loop import StepReport


@dataclass(frozen=True)
class Note:
    """A line for the user about what is being done."""

    text: str


@dataclass(frozen=True)
class Progress:
    """done of total pieces of what is going on."""

    what: str
    done: int
    total: int


@dataclass(frozen=True)
class Prepared:
    """All that is known before the model is loaded. recipe: with the chosen way written into it. asked: with what was left
    at auto still there, so that another machine can choose another way."""

    recipe: Recipe
    asked: Recipe
    source: ModelSource
    shape: Shape
    compute: ComputeType
    data: Dataset
    loader: Loader
    plan: Plan
    updates: int


@dataclass(frozen=True)
class Loaded:
    """What was loaded: bytes by type, share of linear weights that is quantised, adapter parameters, targets, and how it
    will run."""

    bytes: dict[str, int]
    quantised: float
    trainable: int
    total: int
    targets: list[str]
    linears: str
    path: str


Event = Note | Progress | Prepared | Loaded | StepReport
Watch = Callable[[Event], None]
