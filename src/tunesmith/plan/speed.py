"""How long a run will take: its matrix products, at the speed this machine was just measured to have."""

import time

import torch

from tunesmith.plan.memory import Shape

SHARE_OF_STEP = 0.6
"""Share of a step's time that is matrix products (measured on two CPU cores, see docs/log.md)."""


def flops(shape: Shape, inputs: int, labels: int, checkpointing: bool = False) -> float:
    """Floating-point operations of training on ``inputs`` flat tokens, ``labels`` of them with a target.

    Forward and input gradient of every frozen linear (2 each), one more forward with checkpointing, the head likewise.
    """
    passes = 3 if checkpointing else 2
    return 2.0 * passes * inputs * shape.linear_weights + 4.0 * labels * shape.vocab * shape.hidden


def measure_flops(device: torch.device, dtype: torch.dtype, hidden: int, seconds: float = 0.2) -> float:
    """Floating-point operations a second of matrix products of this width, the best of a fifth of a second."""
    x = torch.randn(1024, hidden, device=device, dtype=dtype)
    weight = torch.randn(4 * hidden, hidden, device=device, dtype=dtype)
    operations = 2.0 * x.shape[0] * weight.shape[0] * hidden
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end or not best:
        start = time.perf_counter()
        x @ weight.T
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, operations / (time.perf_counter() - start))
    return best
