"""One update of the adapter: gradient of a window of packs, checks, clipping, optimizer."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch.nn import Parameter

from tunesmith.data.packing import Pack
from tunesmith.kernels.dropout import start_seed
from tunesmith.recipe import Recipe
from tunesmith.training import guard
from tunesmith.training.optimizer import make_optimizer
from tunesmith.training.step import PackLoss


class EagerUpdate:
    """The plain way, operation by operation. Its twin on a GPU is `graph.GraphUpdate`.

    The loss is summed over trained tokens and divided once by their count in the whole window, so that the split of a
    window into micro-batches does not change the update.
    """

    def __init__(self, loss_of: PackLoss, parameters: Mapping[str, Parameter], recipe: Recipe, peak: float) -> None:
        self.loss_of, self.parameters = loss_of, parameters
        self.device = next(iter(parameters.values())).device
        self.max_norm = recipe.max_grad_norm or math.inf
        self.optimizer = make_optimizer(parameters.values(), recipe, peak, self.device)
        self.seed = start_seed(self.device, recipe.seed)

    def __call__(self, packs: Sequence[Pack], rate: float, step: int) -> tuple[float, float]:
        """Make update ``step`` (1-based) at this learning rate; returns the window's mean loss and the gradient's norm.

        Raises:
            TrainingError: loss or gradient are not finite (before the update), or an adapter tensor has no gradient.
        """
        trained = sum(len(pack.targets) for pack in packs)
        total = 0.0
        for pack in packs:
            self.seed.add_(1)
            with self.loss_of.attention():
                loss = self.loss_of.of(pack.to(self.device))
                value = float(loss.detach())
                guard.check_loss(value, step, pack.where)
                (loss / trained).backward()
            total += value
        if step == 1:
            guard.check_gradients(self.parameters, step)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.max_norm))
        guard.check_norm(norm, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total / trained, norm

    def close(self) -> None:
        """Nothing is held beyond the updates."""
