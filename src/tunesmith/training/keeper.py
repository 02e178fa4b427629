"""When the state of a run is saved, which states are kept, and which adapter was best."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.nn import Parameter

from tunesmith.recipe import Recipe
from tunesmith.training import guard
from tunesmith.training.checkpoint import keep_newest, save_checkpoint
from tunesmith.training.state import Best, State, host_copy


class Keeper:
    """Keeps nothing: a training whose state nobody wants. What a loop asks of one that does is the same."""

    @property
    def stopping(self) -> bool:
        """Whether to end after the update being made."""
        return False

    def due(self, step: int, total: int) -> bool:
        """Whether the state after this update is to be saved; 0 is before the first. Once true for an update, it stays so."""
        return False

    def evaluated(self, step: int, loss: float, parameters: Mapping[str, Parameter]) -> None:
        """Told of every evaluation, while the adapter is as it was evaluated."""

    def save(self, state: State) -> None:
        """Save the state.

        Raises:
            TrainingError: the adapter is not finite.
        """


class RunKeeper(Keeper):
    """Keeps checkpoints in the run's folder, as ``save_steps``, ``save_minutes`` and ``save_total_limit`` say.

    Args:
        origin: what the run is made from. stop: whether the user wants it to end.
        best: of the state the run goes on from.
    """

    def __init__(
        self, run: Path, recipe: Recipe, origin: Mapping[str, Any], stop: Callable[[], bool], best: Best | None = None
    ) -> None:
        self.run, self.recipe, self.origin, self.stop, self.best = run, recipe, origin, stop, best
        self.saved = time.monotonic()
        self.seconds = 0.0  # spent on saving

    @property
    def stopping(self) -> bool:
        return self.stop()

    def due(self, step: int, total: int) -> bool:
        if step in (0, total) or self.stopping:
            return True
        if self.recipe.save_steps and step % self.recipe.save_steps == 0:
            return True
        minutes = self.recipe.save_minutes
        return minutes > 0 and time.monotonic() - self.saved >= 60 * minutes

    def evaluated(self, step: int, loss: float, parameters: Mapping[str, Parameter]) -> None:
        if self.recipe.load_best_model_at_end and (self.best is None or loss < self.best.loss):
            self.best = Best(step, loss, host_copy(parameters))

    def save(self, state: State) -> None:
        guard.check_saved(state.adapter, state.position.step)
        begun = time.monotonic()
        metrics = (self.run / "metrics.jsonl").read_bytes()
        save_checkpoint(self.run / "checkpoints", replace(state, best=self.best), self.origin, metrics)
        keep_newest(self.run / "checkpoints", self.recipe.save_total_limit)
        self.saved = time.monotonic()
        self.seconds += self.saved - begun
