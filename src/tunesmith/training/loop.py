"""The training loop: updates one after another, each checked before it is made, each reported."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Parameter

from tunesmith.base.adapter import adapter_parameters
from tunesmith.data.loader import Loader
from tunesmith.data.packing import Pack
from tunesmith.recipe import Recipe
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
    keeper: Keeper = Keeper(), begun_at: State | None = None,
) -> Iterator[StepReport]:  # fmt: skip
    """Train the adapter of ``model`` in place, yielding a report after every update.

    Args:
        keeper: says after which updates the state is saved, and saves it once the report of that update was taken.
        begun_at: a state to go on from; the reports begin after it.

    Raises:
        TrainingError: loss or gradient are not finite (before the update), or an adapter tensor has no gradient.
    """
    parameters = adapter_parameters(model)
    torch.manual_seed(recipe.seed)
    update = make_update(model, loss_of, parameters, recipe, peak)
    schedule = _Schedule(recipe, total_updates(loader, recipe), loader.updates_per_epoch, peak)
    if begun_at is not None:
        restore(begun_at, parameters, update)
    elif keeper.due(0, schedule.total):
        keeper.save(capture(Position(), parameters, update))
    model.train()
    windows = _ahead(_windows(loader, schedule.total, begun_at.position if begun_at else Position()))
    start = time.perf_counter()
    try:
        for window, loss, norm, begun in _made(update, windows, schedule, bool(eval_packs), keeper):
            step, seconds, held_out = window.after.step, time.perf_counter() - start, None
            if eval_packs and schedule.evaluates(step):
                held_out = evaluate(model, loss_of, eval_packs)
                keeper.evaluated(step, held_out, parameters)
            start = time.perf_counter()
            yield StepReport(
                step, schedule.total, window.epochs, loss, schedule.rate(step), norm, *window.counts, seconds, held_out
            )
            if not begun and keeper.due(step, schedule.total):
                keeper.save(capture(window.after, parameters, update))
                if keeper.stopping:
                    return
    finally:
        update.close()


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


def capture(position: Position, parameters: Mapping[str, Parameter], update: EagerUpdate | GraphUpdate) -> State:
    """The state of a training between two updates."""
    device = next(iter(parameters.values())).device
    return State(position, host_copy(parameters), *update.state(), random_state(device))


def restore(state: State, parameters: Mapping[str, Parameter], update: EagerUpdate | GraphUpdate) -> None:
    """Bring a training to such a state."""
    put_adapter(parameters, state.adapter)
    update.load(state.optimizer, state.counts, state.position.micro_batches)
    set_random_state(state.random, next(iter(parameters.values())).device)


def make_update(
    model: Any, loss_of: PackLoss, parameters: Mapping[str, Parameter], recipe: Recipe, peak: float
) -> EagerUpdate | GraphUpdate:
    """The fastest way to make an update on the device the parameters lie on."""
    embedding = model.get_input_embeddings().weight
    alike = len({parameter.dtype for parameter in parameters.values()}) == 1  # trained biases may be of the model's own type
    if embedding.is_cuda and alike:
        return GraphUpdate(loss_of, parameters, recipe, peak, embedding.dtype)
    return EagerUpdate(loss_of, parameters, recipe, peak)


def _ahead(windows: Iterator[Window]) -> Iterator[Window]:
    """The same, each made while the one before is being trained on."""
    with ThreadPoolExecutor(1, "packs") as pool:
        coming = pool.submit(next, windows, None)
        while (window := coming.result()) is not None:
            coming = pool.submit(next, windows, None)
            yield window


def _windows(loader: Loader, total: int, start: Position = Position()) -> Iterator[Window]:
    """What each update after ``start`` reads."""
    done, epoch, first, passes = start.step, start.epoch, start.window, start.micro_batches
    while done < total:
        for number, packs in enumerate(loader.epoch(epoch, first), first + 1):
            if packs:
                done, passes = done + 1, passes + len(packs)
                yield Window(packs, Position(done, epoch, number, passes), epoch + number / loader.updates_per_epoch)
            if done == total:
                return
        epoch, first = epoch + 1, 0


@torch.no_grad()
def evaluate(model: Any, loss_of: PackLoss, packs: Sequence[Pack]) -> float:
    """Mean loss over the trained tokens of ``packs``, dropout off, the random state untouched."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    total = sum(float(loss_of(pack.to(device))) for pack in packs)
    model.train(was_training)
    return total / sum(len(pack.targets) for pack in packs)
