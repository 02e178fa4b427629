"""How long a run will take: its matrix products, at the speed this machine was just measured to have, and what a way adds."""

import time
from dataclasses import dataclass

import torch

from tunesmith.plan.memory import Shape
from tunesmith.plan.way import Way

SHARE_OF_STEP = {"cpu": 0.6, "cuda": 0.55}
"""Share of a step's time that is matrix products (measured, see docs/log.md and docs/performance.md)."""
HOST_LINK = 20e9
"""Bytes a second between pinned host memory and a GPU, by a PCIe link of the last years."""


@dataclass(frozen=True)
class Speed:
    """Of one device. flops: floating-point operations a second of matrix products. copy: bytes a second read and written in place.
    share: of a step that is matrix products."""

    flops: float
    copy: float
    share: float


UNSEEN = Speed(100e12, 1e12, SHARE_OF_STEP["cuda"])
"""Of a GPU that is not here: puts ways in their order, and is no time to be told."""


def flops(shape: Shape, inputs: float, labels: float, checkpointing: bool = False) -> float:
    """Floating-point operations of training on ``inputs`` flat tokens, ``labels`` of them with a target.

    Forward and input gradient of every frozen linear (2 each), one more forward with checkpointing, the head likewise.
    """
    passes = 3 if checkpointing else 2
    return 2.0 * passes * inputs * shape.linear_weights + 4.0 * labels * shape.vocab * shape.hidden


def step_seconds(
    shape: Shape, inputs: float, labels: float, way: Way, speed: Speed, element_bytes: int, micro_batches: float
) -> float:
    """Seconds of one update over so many tokens and labels, in so many micro-batches."""
    seconds = flops(shape, inputs, labels, way.recompute) / (speed.flops * speed.share)
    passes = (3 if way.recompute else 2) * micro_batches
    read = shape.linear_weights * element_bytes / speed.copy  # a pass over the weights at least reads them
    seconds += passes * read * (1 if way.keep else 2.5)
    copies = 2 * inputs * shape.layers * shape.hidden * element_bytes / HOST_LINK if way.host_activations else 0
    copies += 2 * micro_batches * shape.linear_weights / 2 / HOST_LINK if way.stream else 0
    return max(seconds, copies) + 0.1 * min(seconds, copies)  # they run beside the products: only what they take longer counts


def measure_speed(device: torch.device, dtype: torch.dtype, hidden: int) -> Speed:
    """This machine's speed, measured in half a second."""
    return Speed(measure_flops(device, dtype, hidden), _measure_copy(device), SHARE_OF_STEP[device.type])


def measure_flops(device: torch.device, dtype: torch.dtype, hidden: int, seconds: float = 0.2) -> float:
    """Floating-point operations a second of matrix products of this width, the best of a fifth of a second."""
    x = torch.randn(1024, hidden, device=device, dtype=dtype)
    weight = torch.randn(4 * hidden, hidden, device=device, dtype=dtype)
    operations = 2.0 * x.shape[0] * weight.shape[0] * hidden
    return operations / _best_time(lambda: x @ weight.T, device, seconds)


def _measure_copy(device: torch.device) -> float:
    """Bytes a second of adding one to an array too large for any cache, read and written."""
    array = torch.zeros(2**25 if device.type == "cuda" else 2**24, device=device)
    return 2 * array.nbytes / _best_time(lambda: array.add_(1), device, 0.1)


def _best_time(work: object, device: torch.device, seconds: float) -> float:
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        work()  # type: ignore[operator]
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best
