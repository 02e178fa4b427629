"""The update as CUDA graphs: thousands of kernels launched as one, with no word between host and device inside.

A micro-batch's forward and backward are one graph for each layout of packs (lengths of segments, number of labels), and
clipping, optimizer and clearing are another: an update replays the first once a micro-batch and then the second. What
changes from step to step lies in device tensors: the pack, the learning rate, the seed of dropout.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from tunesmith.data.packing import Pack
from tunesmith.kernels.dropout import start_seed
from tunesmith.recipe import Recipe
from tunesmith.training import guard
from tunesmith.training.flat import FlatParameters
from tunesmith.training.optimizer import make_optimizer
from tunesmith.training.step import PackLoss

MAX_LAYOUTS = 16
"""Layouts captured; packs of yet another one run eagerly."""


class GraphUpdate:
    """As `update.EagerUpdate`, on a GPU. The first update, and the first pack of each layout, run eagerly: they compile
    kernels and find every tensor that has no gradient. ``eager_reason`` says why nothing is captured, if so."""

    def __init__(
        self, loss_of: PackLoss, parameters: Mapping[str, Parameter], recipe: Recipe, peak: float, compute: torch.dtype
    ) -> None:
        self.loss_of, self.parameters, self.recipe, self.peak = loss_of, parameters, recipe, peak
        self.device = next(iter(parameters.values())).device
        self.compute, self.max_norm = compute, recipe.max_grad_norm or math.inf
        self.stream = torch.cuda.Stream(self.device)
        self.pool = torch.cuda.graph_pool_handle()
        self.seed = start_seed(self.device, recipe.seed)
        self.result = torch.zeros(2, device=self.device)  # sum of losses, norm of the gradient
        self.inverse = torch.zeros((), device=self.device)  # 1 / trained tokens of the window
        self.layouts: dict[Any, _Captured | None] = {}
        self.eager_reason: str | None = None
        self.flat: FlatParameters | None = None
        self.captured_finish: torch.cuda.CUDAGraph | None = None
        self.finishes = 0

    def __call__(self, packs: Sequence[Pack], rate: float, step: int) -> tuple[float, float]:
        """As `EagerUpdate`; a loss or gradient that is not finite is found on the device, which then makes no update."""
        trained = sum(len(pack.targets) for pack in packs)
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            self.inverse.fill_(1 / trained)
            for pack in packs:
                self._accumulate(pack)
            if step == 1:
                self._start()
            self.rate.fill_(rate)
            self._finish()
            loss, norm = self.result.tolist()
            self.result.zero_()
        guard.check_loss(loss, step, [where for pack in packs for where in pack.where])
        guard.check_norm(norm, step)
        return loss / trained, norm

    def _start(self) -> None:
        guard.check_gradients(self.parameters, 1)
        self.flat = FlatParameters(list(self.parameters.values()), self.compute)
        self.rate = torch.zeros((), device=self.device)
        self.optimizer = make_optimizer([self.flat.flat], self.recipe, self.peak, self.device)

    def _accumulate(self, pack: Pack) -> None:
        """Add the gradient of a micro-batch."""
        layout = (pack.segments.lengths, pack.segments.parents, len(pack.targets))
        known = layout in self.layouts
        if not known or self.eager_reason is not None:
            self.layouts.setdefault(layout, None)
            self._backward(pack.to(self.device))
            return
        captured = self.layouts[layout]
        if captured is None and sum(c is not None for c in self.layouts.values()) < MAX_LAYOUTS:
            captured = self.layouts[layout] = self._capture(pack)
        if captured is None:
            self._backward(pack.to(self.device))
        else:
            captured.replay(pack)

    def _backward(self, pack: Pack) -> None:
        self.seed.add_(1)
        with self.loss_of.attention():
            loss = self.loss_of.of(pack)
            (loss * self.inverse).backward()
        if self.flat is not None:
            self.flat.gather()
        self.result[0].add_(loss.detach())

    def _capture(self, pack: Pack) -> "_Captured | None":
        static = pack.to(self.device)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                self._backward(static)
        except RuntimeError as error:
            self.eager_reason = str(error).splitlines()[0]
            return None
        return _Captured(graph, static)

    def _finish(self) -> None:
        """Norm, clipping, optimizer, and gradients back to zero."""
        assert self.flat is not None
        self.finishes += 1
        if self.recipe.optim != "adamw_torch":  # bitsandbytes' optimizers count steps on the host
            self.optimizer.param_groups[0]["lr"] = float(self.rate)
            self._clip()
            if math.isfinite(float(self.result.sum())):
                self.optimizer.step()
            self.flat.grad.zero_()
            self.flat.refresh()
        elif self.captured_finish is not None:
            self.captured_finish.replay()
        elif self.finishes <= 2 or self.eager_reason is not None:
            self._clip_and_step()
        else:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                self._clip_and_step()
            self.captured_finish = graph
            graph.replay()

    def _clip(self) -> None:
        assert self.flat is not None
        norm = torch.linalg.vector_norm(self.flat.grad)
        self.result[1].copy_(norm)
        if self.max_norm < math.inf:
            self.flat.grad.mul_((self.max_norm / (norm + 1e-6)).clamp(max=1))

    def _clip_and_step(self) -> None:
        assert self.flat is not None
        self._clip()
        self.optimizer.param_groups[0]["lr"] = self.rate
        # torch's fused optimizers leave everything as it is where this is 1
        self.optimizer.found_inf = torch.isfinite(self.result.sum()).logical_not().float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.flat.grad.zero_()
        self.flat.refresh()

    def close(self) -> None:
        """Give the graphs back; the parameters stay as they are."""
        self.layouts.clear()
        self.captured_finish = None
        if self.flat is not None:
            self.flat.release()


class _Captured:
    """A captured forward and backward, and the pack it reads."""

    def __init__(self, graph: torch.cuda.CUDAGraph, pack: Pack) -> None:
        self.graph, self.pack = graph, pack

    def replay(self, pack: Pack) -> None:
        for name in ("input_ids", "position_ids", "label_index", "targets"):
            target: Tensor = getattr(self.pack, name)
            target.copy_(getattr(pack, name), non_blocking=True)
        self.graph.replay()
