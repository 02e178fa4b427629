"""What a program of the adapter's thin products works on at a time."""

from dataclasses import dataclass

import triton
from torch import Tensor


@dataclass(frozen=True)
class Tile:
    """What a program works on at a time, tokens × columns, with so many warps and stages of loading; programs: as many share
    a sum as make about so many in all, each of at least ``least`` elements of it. For 16-bit types, from a search on an H100."""

    tokens: int
    columns: int
    warps: int
    stages: int
    programs: int = 1
    least: int = 1

    def of(self, x: Tensor) -> "Tile":
        """For x's type: fp32 is multiplied outside the matrix units and needs twice the registers, hence twice the threads."""
        return self if x.element_size() == 2 else Tile(32, 32, 8, self.stages, self.programs, self.least)


def padded_rank(x: Tensor, rank: int) -> int:
    """The padded rank, a power of two."""
    assert rank <= 128
    assert x.stride(1) == 1
    return max(16, triton.next_power_of_2(rank))


def unroll(ranks: int) -> int:
    """Shares read at once: as many as registers hold."""
    return 8 if ranks <= 32 else 2


def widen(x: Tensor) -> bool:
    """Triton's interpreter, the only way these run on a CPU, multiplies the bits of bf16 as if they were integers."""
    return x.device.type == "cpu"
