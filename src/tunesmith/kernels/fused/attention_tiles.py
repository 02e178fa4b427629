"""How large the tiles of `attention` are: tokens of a block, tokens read at a time, warps; and how a head's columns are cut."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tunesmith.kernels.fused.attention_layout import Layout

LARGEST = 64
"""Tokens of the largest block. Blocks of 128 gain up to a sixth in one kernel and lose it in another."""


@dataclass(frozen=True)
class Tile:
    """Tokens that a program reads at a time, its warps, and stages of loading."""

    tokens: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Tiles:
    """The tiles of one kernel. large: by most columns of a head, for 16-bit types and blocks of `LARGEST` on Hopper where nothing
    is rotated, from a search on an H100. elements: most that a tile has otherwise, in 16 bits."""

    large: dict[int, Tile]
    elements: int

    def of(self, q: Tensor, layout: Layout, turned: bool) -> dict[str, int]:
        """As arguments of a launch for heads q ``[T, H, D]``; turned: whether rows are rotated as they are read."""
        size, block = q.shape[2], layout.block
        if block == LARGEST and q.element_size() == 2 and is_hopper(q.device) and not turned:
            tile = self.large[min(columns for columns in self.large if size <= columns)]
        else:  # fp32 is multiplied from registers; tiles that are rotated take registers, and loops over them are short
            elements = self.elements if q.element_size() == 2 else self.elements // 4
            tile = Tile(max(16, elements // padded(size)), 4, 1 if turned else 2)
        return {"TILE": min(block, tile.tokens), "num_warps": tile.warps, "num_stages": tile.stages}


FORWARD = Tiles({128: Tile(64, 4, 3), 256: Tile(32, 4, 2)}, elements=64 * 256)
QUERIES = Tiles({96: Tile(64, 4, 3), 256: Tile(64, 4, 2)}, elements=64 * 256)
KEYS = Tiles({64: Tile(64, 4, 3), 128: Tile(64, 4, 2), 256: Tile(64, 8, 2)}, elements=16 * 256)


def padded(size: int) -> int:
    """The width of a tile that holds so many columns: a power of two that matrix units take."""
    return max(16, 1 << (size - 1).bit_length())


def parts_of(size: int, halves: bool = False) -> tuple[int, int, int]:
    """Where a head of so many columns is cut in two, and the padded widths of its parts: of 96 in halves 48, 64 and 64, else
    64, 64 and 32."""
    power = padded(size)
    cut = size // 2 if halves or size == power or size <= 16 else power // 2
    return cut, padded(cut), padded(size - cut)


def choose_block(lengths: Sequence[int], parents: Sequence[int], largest: int) -> int:
    """The block, of 16, 32 and at most ``largest``, with the least work: a tile costs what it costs to begin one, and its
    side (far from filling the matrix units, a tile's time is not its area)."""
    size, parent = np.array(lengths, dtype=np.int64), np.array(parents, dtype=np.int64)
    prefix = np.where(parent >= 0, size[parent], 0)

    def work(block: int) -> int:
        rows = -(-size // block)
        return int((rows * (rows + 1) // 2 + rows * -(-prefix // block)).sum()) * (16 + block)

    return min((block for block in (16, 32, 64) if block <= largest), key=work)


def largest_block(head_dim: int, dtype: torch.dtype, device: torch.device) -> int:
    """The largest block whose tiles fit the registers and the device's shared memory, or 0 if none does."""
    width = padded(head_dim)
    if dtype.itemsize == 2:
        block = LARGEST if head_dim <= 128 or is_hopper(device) else 32
        tiles = 6.0  # the queries' gradient has q, dO, and two each of k and v on their way
    else:
        block, tiles = 32 if head_dim <= 64 else 16, 4.125  # fp32 is multiplied outside the matrix units, from registers
    room = shared_memory(device)
    while block >= 16 and block * tiles * width * dtype.itemsize > room:
        block //= 2
    return block if block >= 16 else 0


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a program can have: 64 KB on a T4, 99 KB on an RTX 30 to 50, 227 KB on an H100."""
    if device.type != "cuda":
        return 99 * 1024  # of Triton's interpreter, what most GPUs have
    from triton.runtime import driver  # tables are made, and plans, where triton is not

    index = torch.cuda.current_device() if device.index is None else device.index
    return int(driver.active.utils.get_device_properties(index)["max_shared_mem"])  # what Triton itself goes by


@functools.cache
def is_hopper(device: torch.device) -> bool:
    """Whether matrix units read their factors from shared memory and sum in registers."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


def can_rotate(block: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernels may rotate q and k themselves: on Hopper, with blocks of 64. Elsewhere each warp would rotate all of a
    tile in its own registers, and these would not do."""
    return is_hopper(device) and block == LARGEST and head_dim <= 128 and dtype.itemsize == 2
