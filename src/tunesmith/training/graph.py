"""The update as CUDA graphs: thousands of kernels launched as one, with no word between host and device inside.

A micro-batch's forward and backward are one graph, and clipping, optimizer and clearing are another: an update replays the
first once a micro-batch and then the second. What changes from step to step lies in device tensors: the pack, the learning
rate, the seed of dropout, and which documents lie where (the tables of the attention kernels). A graph thus serves every
pack of about its size, padded with a document that nothing sees.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter

from tunesmith.data.packing import Pack
from tunesmith.data.sizes import Ladder, Sizes
from tunesmith.kernels.dropout import start_seed
from tunesmith.recipe import Recipe
from tunesmith.training import guard
from tunesmith.training.flat import FlatParameters
from tunesmith.training.loss_scale import LossScale
from tunesmith.training.optimizer import make_optimizer
from tunesmith.training.state import Tensors, optimizer_state, set_optimizer_state
from tunesmith.training.step import PackLoss

MAX_CAPTURED = 24
"""Graphs kept; packs that none of them takes run eagerly."""


@dataclass(frozen=True)
class _Window:
    """Of an update: its rows, step, and trained tokens."""

    packs: Sequence[Pack]
    step: int
    trained: int


class GraphUpdate:
    """As `update.EagerUpdate`, on a GPU, where the next window's gradient is queued while one waits for a result (but in fp16,
    where that result may be that the gradient must be made again).

    The first update, and the first pack of each size, run eagerly: they compile kernels and find every tensor that has no
    gradient. ``eager_reason`` says why nothing is captured, if so.
    """

    def __init__(
        self, loss_of: PackLoss, parameters: Mapping[str, Parameter], recipe: Recipe, peak: float, compute: torch.dtype,
        first: Pack, tell: Callable[[str], None],
    ) -> None:  # fmt: skip
        """first: the run's first pack, whose sizes packs are padded to. tell: takes a line for the user."""
        self.tell = tell
        self.loss_of, self.parameters, self.recipe, self.peak = loss_of, parameters, recipe, peak
        self.ladder = Ladder.through(first)
        self.device = next(iter(parameters.values())).device
        self.compute, self.max_norm = compute, recipe.max_grad_norm or math.inf
        self.stream = torch.cuda.Stream(self.device, priority=-1)  # before what `at_once` puts beside it
        self.pool = torch.cuda.graph_pool_handle()
        self.seed = start_seed(self.device, recipe.seed)
        self.sums = torch.zeros(2, device=self.device)  # sum of losses, norm of the gradient
        self.report = torch.zeros(2, device=self.device)  # the same of the update finished last
        self.answer, self.answered = torch.zeros(2, pin_memory=True), torch.cuda.Event()
        self.scale = LossScale(compute)
        self.overlaps = not self.scale.adaptive
        self.inverse = torch.zeros((), device=self.device)  # loss scale / trained tokens of the window
        self.shrink = torch.ones((), device=self.device)  # 1 / loss scale
        self.captured: list[_Captured] = []
        self.eager_reason: str | None = None
        self.flat: FlatParameters | None = None
        self.captured_finish: torch.cuda.CUDAGraph | None = None
        self.finishes = 0
        self.loaded: tuple[Tensors, dict[str, float]] = {}, {}

    def begin(self, packs: Sequence[Pack], step: int) -> None:
        """Queue the gradient of the window of update ``step`` (1-based); the parameters stay as they are."""
        trained = sum(len(pack.targets) for pack in packs)
        self.begun = _Window(packs, step, trained)
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            self.inverse.fill_(self.scale.value / trained)
            for pack in packs:
                self._accumulate(pack)
            if self.flat is None:
                self._start(step)

    def finish(self, rate: float) -> None:
        """Queue the update whose gradient is there, at this learning rate. A loss or gradient that is not finite is found on
        the device, which then makes none."""
        self.finishing, self.asked = self.begun, rate
        with torch.cuda.stream(self.stream):
            self.rate.fill_(rate)
            self.shrink.fill_(1 / self.scale.value)
            self._finish()
            self.answer.copy_(self.report, non_blocking=True)
            self.answered.record(self.stream)

    def result(self) -> tuple[float, float]:
        """Wait for the update finished last: its window's mean loss, and the norm of its gradient.

        Raises:
            TrainingError: one of them is not finite; the update was not made.
        """
        loss, norm = self._answer()
        while math.isfinite(loss) and not math.isfinite(norm) and self.scale.halve():
            self._again()
            loss, norm = self._answer()
        window = self.finishing
        guard.check_loss(loss, window.step, [where for pack in window.packs for where in pack.where])
        guard.check_norm(norm, window.step, self.scale.adaptive)
        self.scale.made()
        return loss / window.trained, norm

    def _answer(self) -> tuple[float, float]:
        self.answered.synchronize()
        torch.cuda.current_stream(self.device).wait_event(self.answered)
        loss, norm = self.answer.tolist()
        return loss, norm

    def _again(self) -> None:
        """Queue the update finished last once more: it was not made."""
        with torch.cuda.stream(self.stream):
            self.seed.sub_(len(self.finishing.packs))
        self.begin(self.finishing.packs, self.finishing.step)
        self.finish(self.asked)

    def state(self) -> tuple[Tensors, dict[str, float]]:
        """The optimizer's tensors and plain numbers between two updates, in host memory. The result of the last update has
        been waited for, and no gradient is begun."""
        if self.flat is None:
            return self.loaded[0], self.loaded[1] | self.scale.counts()
        tensors, counts = optimizer_state(self.optimizer)
        return tensors, counts | self.scale.counts()

    def load(self, tensors: Tensors, counts: Mapping[str, float], micro_batches: int) -> None:
        """Go on from such a state, after so many micro-batches; the parameters are set by the caller. The optimizer takes its
        share when it is made, after the first gradient."""
        self.loaded = tensors, self.scale.take(counts)
        start_seed(self.device, self.recipe.seed).add_(micro_batches)

    def _start(self, step: int) -> None:
        guard.check_gradients(self.parameters, step)
        self.flat = FlatParameters(list(self.parameters.values()), self.compute)
        self.rate = torch.zeros((), device=self.device)
        self.optimizer = make_optimizer([self.flat.flat], self.recipe, self.peak, self.device)
        set_optimizer_state(self.optimizer, *self.loaded)

    def _accumulate(self, pack: Pack) -> None:
        """Add the gradient of a micro-batch, padded the same way whether it is captured or not."""
        sizes = self.ladder.sizes(pack) if self.loss_of.any_layout else None
        pack = sizes.pad(pack) if sizes is not None else pack
        captured = next((c for c in self.captured if c.takes(pack, sizes)), None)
        if captured is not None:
            captured.replay(pack)
        elif self.flat is None or self.eager_reason is not None or len(self.captured) >= MAX_CAPTURED:
            self._backward(pack.to(self.device))
        else:
            self._capture(pack.to(self.device), sizes)

    def _backward(self, pack: Pack) -> None:
        self.seed.add_(1)
        with self.loss_of.attention():
            loss = self.loss_of.of(pack)
            (loss * self.inverse).backward()
        if self.flat is not None:
            self.flat.gather()
        self.sums[0].add_(loss.detach())

    def _capture(self, static: Pack, sizes: Sizes | None) -> None:
        """Add the gradient of the first pack of its kind, eagerly, which compiles what it needs; then capture that for the
        next ones."""
        self._backward(static)
        random = torch.cuda.get_rng_state(self.device)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                self._backward(static)
        except RuntimeError as error:
            self._give_up("gradients", error, random)
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
            self._capture_finish()

    def _capture_finish(self) -> None:
        random = torch.cuda.get_rng_state(self.device)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                self._clip_and_step()
        except RuntimeError as error:
            self._give_up("the optimizer's step", error, random)
            self._clip_and_step()
        else:
            self.captured_finish = graph
            graph.replay()

    def _give_up(self, what: str, error: RuntimeError, random: Tensor) -> None:
        """What could not be captured runs operation by operation from here on. Memory that ran out is for the caller.

        Args:
            what: could not be captured.
            random: the generator's state before. A capture that fails leaves it believing that it is captured still, and
                refusing to draw (torch 2.11): it gets a new state.
        """
        fresh = torch.Generator(self.device)
        fresh.set_state(random)
        torch.cuda.default_generators[self.device.index or 0].graphsafe_set_state(fresh.graphsafe_get_state())
        if guard.ran_out_of_memory(error):
            raise error
        self.eager_reason = str(error).splitlines()[0]
        self.tell(f"Updates run operation by operation, which is slower: {what} could not be captured ({self.eager_reason})")

    def _step_on_the_default_stream(self) -> None:
        """bitsandbytes' optimizers run there whatever the current stream is, and so must what they wait for: the states that
        their first step fills. The host has waited for this stream, and waits for that one before it goes on."""
        with torch.cuda.stream(torch.cuda.default_stream(self.device)):
            self.optimizer.step()
        torch.cuda.synchronize(self.device)

    def _clip(self) -> None:
        assert self.flat is not None
        if self.scale.adaptive:
            self.flat.grad.mul_(self.shrink)
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


class _Captured:
    """A captured forward and backward, the pack it reads, and the sizes it serves (None: this layout alone)."""

    def __init__(self, graph: torch.cuda.CUDAGraph, pack: Pack, sizes: Sizes | None) -> None:
        self.graph, self.pack, self.sizes = graph, pack, sizes
        self.documents = pack.segments.documents  # of the pack whose tables are loaded

    def takes(self, pack: Pack, sizes: Sizes | None) -> bool:
        if sizes is not None:
            return self.sizes == sizes
        mine, its = self.pack, pack
        return (mine.segments.documents, len(mine.targets)) == (its.segments.documents, len(its.targets))

    def replay(self, pack: Pack) -> None:
        if pack.segments.documents != self.documents:
            self.pack.segments.load(pack.segments)
            self.documents = pack.segments.documents
        for name in ("input_ids", "position_ids", "label_index", "targets"):
            target: Tensor = getattr(self.pack, name)
            target.copy_(getattr(pack, name), non_blocking=True)
        self.graph.replay()
