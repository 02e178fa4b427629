"""Dropout positions drawn by their gaps: the cost follows the number of dropped elements, not the number of elements."""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def dropped_positions(count: int, p: float, device: torch.device | str = "cpu") -> Tensor:
    """Flat positions of a Bernoulli(p) process over ``count`` elements, ascending, int64 ``[about p * count]``.

    The gap between two successes of a Bernoulli process is geometric, so drawing gaps and summing them gives exactly
    the distribution of ``count`` independent draws with ``p * count`` random numbers instead of ``count``; a geometric
    number is a rounded exponential one. At p = 0.05 that is many times faster than a mask on a CPU, and the positions
    take a fraction of its memory. All randomness comes from torch's generator (one seed a call).
    """
    expected = count * p
    draws = int(expected + 6 * math.sqrt(expected) + 16)
    generator = np.random.Generator(np.random.SFC64(int(torch.randint(2**62, ()))))
    positions = _gaps(generator, draws, p).cumsum() - 1
    while positions[-1] < count:  # the draws fell short of the end: a once-in-a-billion event, continued exactly
        positions = np.concatenate([positions, positions[-1] + _gaps(generator, draws, p).cumsum()])
    return torch.from_numpy(positions[: np.searchsorted(positions, count)]).to(device)


def _gaps(generator: np.random.Generator, draws: int, p: float) -> npt.NDArray[np.int64]:
    """Geometric numbers, 1 and up: ``floor(E / -ln(1-p)) + 1`` for a standard exponential E."""
    return (generator.standard_exponential(draws) * (-1 / math.log1p(-p))).astype(np.int64) + 1


def mask_of(positions: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """The keep-mask the positions stand for, bool ``shape``: what a plain dropout would multiply by."""
    keep = torch.ones(math.prod(shape), dtype=torch.bool, device=positions.device)
    keep[positions] = False
    return keep.view(shape)


_SEEDS: dict[torch.device, Tensor] = {}


def step_seed(device: torch.device) -> Tensor:
    """The seed that masks on a GPU are drawn from, int64 ``[1]`` on the device: one tensor, so that a captured step sees
    every change of its value. An update sets it from the recipe and adds one before every forward pass."""
    if device not in _SEEDS:
        _SEEDS[device] = torch.zeros(1, dtype=torch.int64, device=device)
    return _SEEDS[device]


def start_seed(device: torch.device, seed: int) -> Tensor:
    """`step_seed`, set to where the draws of a run with this seed begin."""
    return step_seed(device).fill_((seed & 0x7FFFFFFF) << 32)
