"""One update of the adapter: gradient of a window of packs, checks, clipping, optimizer."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch.nn import Parameter

from tunesmith.data.packing import Pack
from tunesmith.kernels.dropout import start_seed
from tunesmith.recipe import Recipe
from tunesmith.training import guard
from tunesmith.training.loss_scale import LossScale
from tunesmith.training.optimizer import make_optimizer
from tunesmith.training.state import Tensors, optimizer_state, set_optimizer_state
from tunesmith.training.step import PackLoss


class EagerUpdate:
    """The plain way, operation by operation. Its twin on a GPU is `graph.GraphUpdate`. ``overlaps``: whether a window's
    gradient may be begun before the result of the update before it is asked for, because it would only be queued.

    The loss is summed over trained tokens and divided once by their count in the whole window, so that the split of a
    window into micro-batches does not change the update.
    """

    overlaps = False

    def __init__(
        self, loss_of: PackLoss, parameters: Mapping[str, Parameter], recipe: Recipe, peak: float, compute: torch.dtype
    ) -> None:
        self.loss_of, self.parameters, self.recipe = loss_of, parameters, recipe
        self.device = next(iter(parameters.values())).device
        self.max_norm = recipe.max_grad_norm or math.inf
        self.optimizer = make_optimizer(parameters.values(), recipe, peak, self.device)
        self.seed = start_seed(self.device, recipe.seed)
        self.scale = LossScale(compute)

    def begin(self, packs: Sequence[Pack], step: int) -> None:
        """The gradient of the window of update ``step`` (1-based); the parameters stay as they are.

        Raises:
            TrainingError: the loss is not finite, or an adapter tensor has no gradient.
        """
        self.random = torch.get_rng_state()  # of a CPU's dropout
        trained = sum(len(pack.targets) for pack in packs)
        total = 0.0
        for pack in packs:
            self.seed.add_(1)
            with self.loss_of.attention():
                loss = self.loss_of.of(pack.to(self.device))
                value = float(loss.detach())
                guard.check_loss(value, step, pack.where)
                (loss / trained * self.scale.value).backward()
            total += value
        if step == 1:
            guard.check_gradients(self.parameters, step)
        self.packs, self.step, self.loss = packs, step, total / trained

    def finish(self, rate: float) -> None:
        """Make the update whose gradient is there, at this learning rate.

        Raises:
            TrainingError: the gradient is not finite (before the update).
        """
        self.norm = self._clip()
        while not math.isfinite(self.norm) and self.scale.halve():
            self.optimizer.zero_grad()
            self.seed.sub_(len(self.packs))
            torch.set_rng_state(self.random)
            self.begin(self.packs, self.step)
            self.norm = self._clip()
        guard.check_norm(self.norm, self.step, self.scale.adaptive)
        self.scale.made()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _clip(self) -> float:
        if self.scale.adaptive:
            for parameter in self.parameters.values():
                if parameter.grad is not None:
                    parameter.grad.div_(self.scale.value)
        return float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.max_norm))

    def result(self) -> tuple[float, float]:
        """The window's mean loss and the norm of its gradient, of the update made last."""
        return self.loss, self.norm

    def state(self) -> tuple[Tensors, dict[str, float]]:
        """The optimizer's tensors and plain numbers between two updates, in host memory."""
        tensors, counts = optimizer_state(self.optimizer)
        return tensors, counts | self.scale.counts()

    def load(self, tensors: Tensors, counts: Mapping[str, float], micro_batches: int) -> None:
        """Go on from such a state, after so many micro-batches; the parameters are set by the caller."""
        set_optimizer_state(self.optimizer, tensors, self.scale.take(counts))
        start_seed(self.device, self.recipe.seed).add_(micro_batches)

    def close(self) -> None:
        """Nothing is held beyond the updates."""
