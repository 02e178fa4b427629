"""Host memory that a GPU reads where it lies, over the bus: for what is large and of which a step needs a few rows."""

from typing import Any

import torch
from torch import Tensor


class _Pinned:
    """Page-locked bytes as CUDA's array interface describes memory that a GPU can reach; lives as long as a tensor made of it.

    https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html
    """

    def __init__(self, content: Tensor) -> None:
        self.memory = torch.empty(content.nbytes, dtype=torch.uint8, pin_memory=True)
        self.memory.copy_(content.contiguous().view(-1).view(torch.uint8))

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": (self.memory.nbytes,), "typestr": "|u1", "data": (self.memory.data_ptr(), False), "version": 3}


def mapped(content: Tensor, device: torch.device) -> Tensor:
    """The same numbers as a tensor of the GPU whose memory is the host's: every kernel can read it, at the speed of the bus."""
    with torch.cuda.device(device):
        there = torch.as_tensor(_Pinned(content), device="cuda")
    return there.view(content.dtype).view(content.shape)
