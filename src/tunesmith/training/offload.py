"""Activations in host memory between forward and backward: what autograd saves leaves the GPU and comes back when asked for.

With recomputation a layer saves nothing but its input, so this is one copy a layer each way. The host buffers are pinned,
made once and used again in every pass, so that the copies can be part of a CUDA graph.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

MIN_BYTES = 2**20
"""Smaller tensors stay where they are."""


class HostActivations:
    """Host buffers by the place in a forward pass at which they are filled and their size; none is ever given back, since a
    captured pass goes on using it."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[int, int], Tensor] = {}
        self.filled = 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Within this block (a forward pass) large tensors saved for backward go to the host."""
        self.filled = 0
        with torch.autograd.graph.saved_tensors_hooks(self._out, self._back):
            yield

    def _out(self, tensor: Tensor) -> Any:
        if not tensor.is_cuda or tensor.nbytes < MIN_BYTES or (tensor.requires_grad and tensor.is_leaf):
            return tensor
        place = self.filled, 1 << (tensor.nbytes - 1).bit_length()  # few sizes, whatever the packs
        self.filled += 1
        if place not in self.buffers:
            self.buffers[place] = torch.empty(place[1], dtype=torch.uint8, pin_memory=True)
        home = self.buffers[place][: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        home.copy_(tensor, non_blocking=True)
        return home, tensor.device

    def _back(self, saved: Any) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        home, device = saved
        return home.to(device, non_blocking=True)


def with_host_activations(loss: Callable[[Any], Tensor]) -> Callable[[Any], Tensor]:
    """The same loss of a pack, its saved activations in host memory."""
    activations = HostActivations()

    def offloaded(pack: Any) -> Tensor:
        with activations():
            return loss(pack)

    return offloaded
