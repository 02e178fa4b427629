"""Long sums shared among programs: each writes its share, the last to arrive adds them up, always in the same order.

The result does not depend on which program was last, so a run repeats itself to the bit, and no second kernel is launched.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 256
"""Programs that keep a large GPU busy: a product with fewer tiles than this splits its long sum among several."""
MOST_TILES = 4096

_ARRIVALS: dict[tuple[torch.device, int], Tensor] = {}


def arrivals(device: torch.device) -> Tensor:
    """Counters, int32 ``[MOST_TILES]``: zero between kernels. Kernels of one stream take turns, so each stream has its own."""
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    if (device, stream) not in _ARRIVALS:
        _ARRIVALS[device, stream] = torch.zeros(MOST_TILES, dtype=torch.int32, device=device)
    return _ARRIVALS[device, stream]


def shares(length: int, tiles: int, step: int, least: int, programs: int = PROGRAMS) -> tuple[int, int]:
    """Steps of a sum over ``length`` that one program takes, at least ``least`` elements, and how many programs share it."""
    splits = max(1, min(programs // max(1, tiles), length // least))
    steps = max(1, triton.cdiv(length, splits * step))
    return steps, max(1, triton.cdiv(length, steps * step))


@triton.jit
def last_to_arrive(counter, programs):
    """Whether this program is the last of so many to come here; what the others have written before is then visible."""
    tl.debug_barrier()  # every thread's share is written before one of them says so
    last = tl.atomic_add(counter, 1, sem="acq_rel") == programs - 1
    if last:
        tl.store(counter, 0)
    tl.debug_barrier()
    return last


@triton.jit
def add_to(place, total, here):
    """Adds fp32 numbers to what is there, of any type."""
    total += tl.load(place, here, 0.0).to(tl.float32)
    tl.store(place, total.to(place.dtype.element_ty), here)


@triton.jit
def sum_shares(sums, slot, here, count, stride, UNROLL: tl.constexpr):
    """The sum of ``count`` shares that lie ``stride`` apart, for a tile of slots, in order; UNROLL loads are on their way at
    once."""
    total = tl.zeros(slot.shape, dtype=tl.float32)
    for first in range(0, count, UNROLL):
        for i in tl.static_range(UNROLL):
            share = slot * 0 + (first + i)
            total += tl.load(sums + share * stride + slot, here & (share < count), 0.0, cache_modifier=".cg")
    return total
