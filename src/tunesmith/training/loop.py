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
from tunesmith.training.schedule import learning_rate
from tunesmith.training.step import PackLoss
from tunesmith.training.update import EagerUpdate

Window = tuple[float, list[Pack]]
"""Epochs done after an update, and the packs it reads."""


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


def train(
    model: Any, loss_of: PackLoss, loader: Loader, recipe: Recipe, peak: float, eval_packs: Sequence[Pack] = ()
) -> Iterator[StepReport]:
    """Train the adapter of ``model`` in place, yielding a report after every update.

    Raises:
        TrainingError: loss or gradient are not finite (before the update), or an adapter tensor has no gradient.
    """
    parameters = adapter_parameters(model)
    torch.manual_seed(recipe.seed)
    update = make_update(model, loss_of, parameters, recipe, peak)
    total = total_updates(loader, recipe)
    warmup = recipe.warmup_steps or math.ceil(recipe.warmup_ratio * total)
    every = recipe.eval_steps or loader.updates_per_epoch
    model.train()
    begun = False
    start = time.perf_counter()
    try:
        for step, ((epoch, packs), following) in enumerate(_with_next(_ahead(_windows(loader, total))), 1):
            rate = learning_rate(step - 1, total, peak, recipe.lr_scheduler_type, warmup)
            if not begun:
                update.begin(packs, step)
            update.finish(rate)
            evaluates = bool(eval_packs) and (step % every == 0 or step == total)
            begun = following is not None and update.overlaps and not evaluates
            if following is not None and begun:
                # The device goes on while the host reads and reports; the parameters wait for the next finish.
                update.begin(following[1], step + 1)
            loss, norm = update.result()
            seconds = time.perf_counter() - start
            held_out = evaluate(model, loss_of, eval_packs) if evaluates else None
            start = time.perf_counter()
            tokens, trained = sum(pack.tokens for pack in packs), sum(len(pack.targets) for pack in packs)
            yield StepReport(step, total, epoch, loss, rate, norm, tokens, trained, seconds, held_out)
    finally:
        update.close()


def _with_next(windows: Iterator[Window]) -> Iterator[tuple[Window, Window | None]]:
    """Each window and the one after it."""
    window = next(windows, None)
    while window is not None:
        following = next(windows, None)
        yield window, following
        window = following


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


def _windows(loader: Loader, total: int) -> Iterator[Window]:
    """(epochs done after it, packs) of each update."""
    done = epoch = 0
    while done < total:
        for number, packs in enumerate(loader.epoch(epoch), 1):
            if packs:
                done += 1
                yield epoch + number / loader.updates_per_epoch, packs
            if done == total:
                return
        epoch += 1


@torch.no_grad()
def evaluate(model: Any, loss_of: PackLoss, packs: Sequence[Pack]) -> float:
    """Mean loss over the trained tokens of ``packs``, dropout off, the random state untouched."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    total = sum(float(loss_of(pack.to(device))) for pack in packs)
    model.train(was_training)
    return total / sum(len(pack.targets) for pack in packs)
