"""The update as CUDA graphs: thousands of kernels launched as one, with no word between host and device inside.

A micro-batch's forward and backward are one graph, and clipping, optimizer and clearing are another: an update replays the
first once a micro-batch and then the second. What changes from step to step lies in device tensors: the pack, the learning
rate, the seed of dropout, and which documents lie where (the tables of the attention kernels). A graph thus serves every
pack of about its size, padded with a document that nothing sees.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter

from tunesmith.data.packing import Pack, pad_pack
from tunesmith.kernels.dropout import start_seed
from tunesmith.recipe import Recipe
from tunesmith.training import guard
from tunesmith.training.flat import FlatParameters
from tunesmith.training.optimizer import make_optimizer
from tunesmith.training.state import Tensors, optimizer_state, set_optimizer_state
from tunesmith.training.step import PackLoss

MAX_CAPTURED = 8
"""Graphs kept; packs that none of them takes run eagerly."""
ROOM = 0.03
"""Share by which a captured pass has more tokens than the pack it was captured for, so that packs like it fit."""


@dataclass(frozen=True)
class _Window:
    """Of an update: step, trained tokens, and where its rows come from."""

    step: int
    trained: int
    where: list[str]


class GraphUpdate:
    """As `update.EagerUpdate`, on a GPU, where the next window's gradient is queued while one waits for a result.

    The first update, and the first pack of each size, run eagerly: they compile kernels and find every tensor that has no
    gradient. ``eager_reason`` says why nothing is captured, if so.
    """

    overlaps = True

    def __init__(
        self, loss_of: PackLoss, parameters: Mapping[str, Parameter], recipe: Recipe, peak: float, compute: torch.dtype
    ) -> None:
        self.loss_of, self.parameters, self.recipe, self.peak = loss_of, parameters, recipe, peak
        self.device = next(iter(parameters.values())).device
        self.compute, self.max_norm = compute, recipe.max_grad_norm or math.inf
        self.stream = torch.cuda.Stream(self.device)
        self.pool = torch.cuda.graph_pool_handle()
        self.seed = start_seed(self.device, recipe.seed)
        self.sums = torch.zeros(2, device=self.device)  # sum of losses, norm of the gradient
        self.report = torch.zeros(2, device=self.device)  # the same of the update finished last
        self.answer, self.answered = torch.zeros(2, pin_memory=True), torch.cuda.Event()
        self.inverse = torch.zeros((), device=self.device)  # 1 / trained tokens of the window
        self.captured: list[_Captured] = []
        self.eager_reason: str | None = None
        self.flat: FlatParameters | None = None
        self.captured_finish: torch.cuda.CUDAGraph | None = None
        self.finishes = 0
        self.loaded: tuple[Tensors, Mapping[str, float]] = {}, {}

    def begin(self, packs: Sequence[Pack], step: int) -> None:
        """Queue the gradient of the window of update ``step`` (1-based); the parameters stay as they are."""
        trained = sum(len(pack.targets) for pack in packs)
        self.begun = _Window(step, trained, [where for pack in packs for where in pack.where])
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            self.inverse.fill_(1 / trained)
            for pack in packs:
                self._accumulate(pack)
            if self.flat is None:
                self._start(step)

    def finish(self, rate: float) -> None:
        """Queue the update whose gradient is there, at this learning rate. A loss or gradient that is not finite is found on
        the device, which then makes none."""
        self.finishing = self.begun
        with torch.cuda.stream(self.stream):
            self.rate.fill_(rate)
            self._finish()
            self.answer.copy_(self.report, non_blocking=True)
            self.answered.record(self.stream)

    def result(self) -> tuple[float, float]:
        """Wait for the update finished last: its window's mean loss, and the norm of its gradient.

        Raises:
            TrainingError: one of them is not finite; the update was not made.
        """
        self.answered.synchronize()
        torch.cuda.current_stream(self.device).wait_event(self.answered)
        loss, norm = self.answer.tolist()
        guard.check_loss(loss, self.finishing.step, self.finishing.where)
        guard.check_norm(norm, self.finishing.step)
        return loss / self.finishing.trained, norm

    def state(self) -> tuple[Tensors, dict[str, float]]:
        """The optimizer's tensors and plain numbers between two updates, in host memory. The result of the last update has
        been waited for, and no gradient is begun."""
        if self.flat is None:
            return self.loaded[0], dict(self.loaded[1])
        return optimizer_state(self.optimizer)

    def load(self, tensors: Tensors, counts: Mapping[str, float], micro_batches: int) -> None:
        """Go on from such a state, after so many micro-batches; the parameters are set by the caller. The optimizer takes its
        share when it is made, after the first gradient."""
        self.loaded = tensors, counts
        start_seed(self.device, self.recipe.seed).add_(micro_batches)

    def _start(self, step: int) -> None:
        guard.check_gradients(self.parameters, step)
        self.flat = FlatParameters(list(self.parameters.values()), self.compute)
        self.rate = torch.zeros((), device=self.device)
        self.optimizer = make_optimizer([self.flat.flat], self.recipe, self.peak, self.device)
        set_optimizer_state(self.optimizer, *self.loaded)

    def _accumulate(self, pack: Pack) -> None:
        """Add the gradient of a micro-batch."""
        captured = next((c for c in self.captured if c.takes(pack, self.loss_of.any_layout)), None)
        if captured is not None:
            captured.replay(pack)
            return
        if self.flat is None or self.eager_reason is not None or len(self.captured) >= MAX_CAPTURED:
            self._backward(pack.to(self.device))
        else:
            self._capture(pack)

    def _backward(self, pack: Pack) -> None:
        self.seed.add_(1)
        with self.loss_of.attention():
            loss = self.loss_of.of(pack)
            (loss * self.inverse).backward()
        if self.flat is not None:
            self.flat.gather()
        self.sums[0].add_(loss.detach())

    def _capture(self, pack: Pack) -> None:
        """Add the gradient of the first pack of its kind, eagerly, which compiles what it needs; then capture that for the
        next ones."""
        sizes = _Sizes.around(pack) if self.loss_of.any_layout else None
        static = (sizes.pad(pack) if sizes else pack).to(self.device)
        self._backward(static)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                self._backward(static)
        except RuntimeError as error:
            self.eager_reason = str(error).splitlines()[0]
            for parameter in self.parameters.values():
                parameter.grad = None  # it may lie where a captured pass that never ran would have written it
        else:
            self.captured.append(_Captured(graph, static, sizes))

    def _finish(self) -> None:
        """Norm, clipping, optimizer, and gradients back to zero."""
        assert self.flat is not None
        self.finishes += 1
        if self.recipe.optim != "adamw_torch":  # bitsandbytes' optimizers count steps on the host
            self.optimizer.param_groups[0]["lr"] = float(self.rate)
            self._clip()
            if math.isfinite(float(self.sums.sum())):
                self._step_on_the_default_stream()
            self._clear()
        elif self.captured_finish is not None:
            self.captured_finish.replay()
        elif self.finishes <= 2 or self.eager_reason is not None:
            self._clip_and_step()
        else:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                self._clip_and_step()
            self.captured_finish = graph
            graph.replay()

    def _step_on_the_default_stream(self) -> None:
        """bitsandbytes' optimizers run there whatever the current stream is, and so must what they wait for: the states that
        their first step fills. The host has waited for this stream, and waits for that one before it goes on."""
        with torch.cuda.stream(torch.cuda.default_stream(self.device)):
            self.optimizer.step()
        torch.cuda.synchronize(self.device)

    def _clip(self) -> None:
        assert self.flat is not None
        norm = torch.linalg.vector_norm(self.flat.grad)
        self.sums[1].copy_(norm)
        if self.max_norm < math.inf:
            self.flat.grad.mul_((self.max_norm / (norm + 1e-6)).clamp(max=1))

    def _clip_and_step(self) -> None:
        assert self.flat is not None
        self._clip()
        self.optimizer.param_groups[0]["lr"] = self.rate
        # torch's fused optimizers leave everything as it is where this is 1
        self.optimizer.found_inf = torch.isfinite(self.sums.sum()).logical_not().float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self._clear()

    def _clear(self) -> None:
        """Hand the sums over, and make ready for the next window."""
        assert self.flat is not None
        self.report.copy_(self.sums)
        self.sums.zero_()
        self.flat.grad.zero_()
        self.flat.refresh()

    def close(self) -> None:
        """Give the graphs back; the parameters stay as they are."""
        self.captured.clear()
        self.captured_finish = None
        if self.flat is not None:
            self.flat.release()


@dataclass(frozen=True)
class _Sizes:
    """tokens, labels: lengths of a pack's arrays. blocks: rows of its attention tables."""

    tokens: int
    labels: int
    blocks: int

    @staticmethod
    def around(pack: Pack) -> "_Sizes":
        """Sizes with a little room, so that packs like this one fit too; exact for rows that are all alike."""
        tokens, labels = len(pack.input_ids), len(pack.targets)
        if len(set(pack.segments.lengths)) > 1:
            tokens, labels = math.ceil(tokens * (1 + ROOM)), math.ceil(labels * (1 + 2 * ROOM))
        return _Sizes(tokens, labels, tokens // 16 + 2 * len(pack.segments.lengths) + 2)

    def fit(self, pack: Pack) -> bool:
        """Whether a pack goes in, and not too much of the room is wasted on it."""
        tokens, labels = len(pack.input_ids), len(pack.targets)
        blocks = self.tokens // 16 + len(pack.segments.lengths) + 2  # those of the padding too
        inside = tokens <= self.tokens and labels <= self.labels and blocks <= self.blocks
        return inside and tokens >= self.tokens * (1 - 3 * ROOM)

    def pad(self, pack: Pack) -> Pack:
        return pad_pack(pack, self.tokens, self.labels, self.blocks)


class _Captured:
    """A captured forward and backward, the pack it reads, and if it serves packs of any layout, their sizes."""

    def __init__(self, graph: torch.cuda.CUDAGraph, pack: Pack, sizes: _Sizes | None) -> None:
        self.graph, self.pack, self.sizes = graph, pack, sizes
        self.lengths, self.parents = pack.segments.lengths, pack.segments.parents  # of the pack whose tables are loaded

    def takes(self, pack: Pack, any_layout: bool) -> bool:
        if any_layout and self.sizes is not None:
            return self.sizes.fit(pack)
        mine, its = self.pack.segments, pack.segments
        return (mine.lengths, mine.parents, len(self.pack.targets)) == (its.lengths, its.parents, len(pack.targets))

    def replay(self, pack: Pack) -> None:
        if self.sizes is not None:
            pack = self.sizes.pad(pack)
            if pack.segments.lengths != self.lengths or pack.segments.parents != self.parents:
                self.pack.segments.load(pack.segments)
                self.lengths, self.parents = pack.segments.lengths, pack.segments.parents
        for name in ("input_ids", "position_ids", "label_index", "targets"):
            target: Tensor = getattr(self.pack, name)
            target.copy_(getattr(pack, name), non_blocking=True)
        self.graph.replay()
