"""The training loop: updates one after another, each checked before it is made, each reported."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.nn import Parameter

from tunesmith.base.adapter import adapter_parameters
from tunesmith.data.ahead import ahead
from tunesmith.data.loader import Loader
from tunesmith.data.packing import Pack
from tunesmith.recipe import Recipe
from tunesmith.training import guard
from tunesmith.training.graph import GraphUpdate
from tunesmith.training.keeper import Keeper
from tunesmith.training.schedule import learning_rate
from tunesmith.training.state import Position, State, host_copy, put_adapter, random_state, set_random_state
from tunesmith.training.step import PackLoss
from tunesmith.training.update import EagerUpdate


@dataclass(frozen=True)
class Window:
    """What an update reads. after: where the run is when it is made. epochs: done then, fractional."""

    packs: list[Pack]
    after: Position
    epochs: float

    @property
    def counts(self) -> tuple[int, int]:
        """Tokens of its rows, and tokens trained."""
        return sum(pack.tokens for pack in self.packs), sum(len(pack.targets) for pack in self.packs)


@dataclass(frozen=True)
class StepReport:
    """One update. step: 1-based, of total. epoch: passes done, fractional. loss: mean over trained tokens. lr: its
    learning rate. grad_norm: before clipping. tokens: of the rows it read. trained: tokens predicted. seconds: since the one
    before, evaluations aside. eval_loss: mean over the held-out trained tokens, where an evaluation followed."""

    step: int
    total: int
    epoch: float
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    trained: int
    seconds: float
    eval_loss: float | None = None


def total_updates(loader: Loader, recipe: Recipe) -> int:
    """Updates of the whole run: max_steps, or the epochs' updates rounded up."""
    if recipe.max_steps > 0:
        return recipe.max_steps
    return max(1, math.ceil(recipe.num_train_epochs * loader.updates_per_epoch - 1e-9))


@dataclass(frozen=True)
class _Schedule:
    """What happens at which update. total: of the run. per_epoch: updates of an epoch. peak: the highest learning rate."""

    recipe: Recipe
    total: int
    per_epoch: int
    peak: float

    def rate(self, step: int) -> float:
        """The learning rate of this update."""
        warmup = self.recipe.warmup_steps or math.ceil(self.recipe.warmup_ratio * self.total)
        return learning_rate(step - 1, self.total, self.peak, self.recipe.lr_scheduler_type, warmup)

    def evaluates(self, step: int) -> bool:
        """Whether held-out rows are looked at after it."""
        return step % (self.recipe.eval_steps or self.per_epoch) == 0 or step == self.total


def train(
    model: Any, loss_of: PackLoss, loader: Loader, recipe: Recipe, peak: float, eval_packs: Sequence[Pack] = (),
    keeper: Keeper = Keeper(), begun_at: State | None = None, tell: Callable[[str], None] = lambda line: None,
) -> Iterator[StepReport]:  # fmt: skip
    """Train the adapter of ``model`` in place, yielding a report after every update.

    Args:
        keeper: says after which updates the state is saved, and saves it once the report of that update was taken.
        begun_at: a state to go on from; the reports begin after it. tell: takes a line for the user.

    Raises:
        TrainingError: loss, gradient, held-out loss or saved state are not finite, or a gradient is missing.
    """
    parameters = adapter_parameters(model)
    torch.manual_seed(recipe.seed)
    update = make_update(model, loss_of, parameters, recipe, peak, loader, tell)
    schedule = _Schedule(recipe, total_updates(loader, recipe), loader.updates_per_epoch, peak)
    position = _begin(begun_at, parameters, update, keeper, schedule.total)
    model.train()
    windows = ahead(_windows(loader, schedule.total, position), "packs")
    evaluated = partial(_evaluated, model, loss_of, eval_packs, keeper)
    start = time.perf_counter()
    try:
        if begun_at is not None and begun_at.unevaluated is not None:
            if (report := evaluated(StepReport(**begun_at.unevaluated))) is None:
                return
            yield report
        for window, loss, norm, begun in _made(update, windows, schedule, bool(eval_packs), keeper):
            step, seconds = window.after.step, time.perf_counter() - start
            made = StepReport(step, schedule.total, window.epochs, loss, schedule.rate(step), norm, *window.counts, seconds)
            report = evaluated(made) if eval_packs and schedule.evaluates(step) else made
            start = time.perf_counter()
            if report is not None:
                yield report
            if report is None or (not begun and keeper.due(step, schedule.total)):
                keeper.save(capture(window.after, parameters, update, asdict(made) if report is None else None))
                if keeper.stopping:
                    return
    finally:
        update.close()


def _begin(
    begun_at: State | None, parameters: Mapping[str, Parameter], update: EagerUpdate | GraphUpdate, keeper: Keeper, total: int
) -> Position:
    """Where the run goes on: from a state, or from the start, whose own state is saved where that is due."""
    if begun_at is not None:
        restore(begun_at, parameters, update)
        return begun_at.position
    if keeper.due(0, total):
        keeper.save(capture(Position(), parameters, update))
    return Position()


def _evaluated(
    model: Any, loss_of: PackLoss, packs: Sequence[Pack], keeper: Keeper, report: StepReport
) -> StepReport | None:  # fmt: skip
    """The report of an update with its held-out loss; None if the run was asked to stop before that was known."""
    try:
        loss = evaluate(model, loss_of, packs, lambda: keeper.stopping)
    except _StoppedError:
        return None
    guard.check_held_out(loss, report.step)
    keeper.evaluated(report.step, loss, adapter_parameters(model))
    return replace(report, eval_loss=loss)


class _StoppedError(Exception):
    """An evaluation was left in the middle."""


def _made(
    update: EagerUpdate | GraphUpdate, windows: Iterator[Window], schedule: _Schedule, evaluating: bool, keeper: Keeper
) -> Iterator[tuple[Window, float, float, bool]]:
    """Make the update of each window: the window, its mean loss, its gradient's norm, and whether the next window is begun.
    None is begun before an evaluation, nor where the state is to be taken."""
    begun = False
    for window, following in _with_next(windows):
        step = window.after.step
        if not begun:
            update.begin(window.packs, step)
        update.finish(schedule.rate(step))
        begun = following is not None and update.overlaps
        begun = begun and not (evaluating and schedule.evaluates(step)) and not keeper.due(step, schedule.total)
        if following is not None and begun:
            # The device goes on while the host reads and reports; the parameters wait for the next finish.
            update.begin(following.packs, step + 1)
        loss, norm = update.result()
        yield window, loss, norm, begun


def _with_next(windows: Iterator[Window]) -> Iterator[tuple[Window, Window | None]]:
    """Each window and the one after it."""
    window = next(windows, None)
    while window is not None:
        following = next(windows, None)
        yield window, following
        window = following


def capture(
    position: Position, parameters: Mapping[str, Parameter], update: EagerUpdate | GraphUpdate,
    unevaluated: dict[str, Any] | None = None,
) -> State:  # fmt: skip
    """The state of a training between two updates."""
    device = next(iter(parameters.values())).device
    return State(position, host_copy(parameters), *update.state(), random_state(device), unevaluated=unevaluated)


def restore(state: State, parameters: Mapping[str, Parameter], update: EagerUpdate | GraphUpdate) -> None:
    """Bring a training to such a state."""
    put_adapter(parameters, state.adapter)
    update.load(state.optimizer, state.counts, state.position.micro_batches)
    set_random_state(state.random, next(iter(parameters.values())).device)


def make_update(
    model: Any, loss_of: PackLoss, parameters: Mapping[str, Parameter], recipe: Recipe, peak: float, loader: Loader,
    tell: Callable[[str], None],
) -> EagerUpdate | GraphUpdate:  # fmt: skip
    """The fastest way to make an update of these rows on the device the parameters lie on."""
    embedding = model.get_input_embeddings().weight
    alike = len({parameter.dtype for parameter in parameters.values()}) == 1  # trained biases may be of the model's own type
    if embedding.is_cuda and alike:
        return GraphUpdate(loss_of, parameters, recipe, peak, embedding.dtype, loader.first_pack(), tell)
    return EagerUpdate(loss_of, parameters, recipe, peak, embedding.dtype)


def _windows(loader: Loader, total: int, start: Position = Position()) -> Iterator[Window]:
    """What each update after ``start`` reads."""
    done, epoch, shard, first, passes = start.step, start.epoch, start.shard, start.window, start.micro_batches
    while done < total:
        for shard, part in loader.shards(shard):  # noqa: B020 (from that one on)
            for number, packs in enumerate(part.epoch(epoch, first), first + 1):
                if packs:
                    done, passes = done + 1, passes + len(packs)
                    yield Window(packs, Position(done, epoch, number, passes, shard), epoch + loader.share(number))
                if done == total:
                    return
            first = 0
        epoch, shard, first = epoch + 1, 0, 0


@torch.no_grad()
def evaluate(model: Any, loss_of: PackLoss, packs: Sequence[Pack], stopping: Callable[[], bool] = lambda: False) -> float:
    """Mean loss over the trained tokens of ``packs``, dropout off, the random state untouched. stopping: whether to leave it
    at that, asked before every pack."""
    was_training, total = model.training, 0.0
    model.eval()
    device = next(model.parameters()).device
    try:
        for pack in packs:
            if stopping():
                raise _StoppedError
            total += float(loss_of(pack.to(device)))
    finally:
        model.train(was_training)
    return total / sum(len(pack.targets) for pack in packs)
