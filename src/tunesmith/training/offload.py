"""Activations in host memory between forward and backward: what autograd saves leaves the GPU and comes back when asked for.

With recomputation a layer saves nothing but its input, so this is one copy a layer each way. Copies run beside the computation:
one leaves while the next layer is computed, and what was saved before the one that is asked for comes in advance. The host
buffers are pinned, made once and used again in every pass, so that the copies can be part of a CUDA graph.
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
    captured pass goes on using it. saved: what has left in this pass, in order, and the device it left. leaving: what is being
    copied, kept until it has been. coming: what backward has asked for or will ask for next, by its place. busy: whether there
    are copies that nobody has waited for."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[int, int], Tensor] = {}
        self.saved: list[tuple[Tensor, torch.device]] = []
        self.leaving: Tensor | None = None
        self.coming: dict[int, Tensor] = {}
        self.copying: torch.cuda.Stream | None = None
        self.busy = False

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Within this block (a forward pass) large tensors saved for backward go to the host."""
        self._wait()
        self.saved.clear()
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._out, self._back):
                yield
        finally:
            self._wait()

    def _out(self, tensor: Tensor) -> Tensor | int:
        if not tensor.is_cuda or tensor.nbytes < MIN_BYTES or (tensor.requires_grad and tensor.is_leaf):
            return tensor
        place = len(self.saved), 1 << (tensor.nbytes - 1).bit_length()  # few sizes, whatever the packs
        if place not in self.buffers:
            self.buffers[place] = torch.empty(place[1], dtype=torch.uint8, pin_memory=True)
        home = self.buffers[place][: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        self._wait()
        with self._beside(tensor.device):
            home.copy_(tensor, non_blocking=True)
        self.saved.append((home, tensor.device))
        self.leaving = tensor
        return place[0]

    def _back(self, saved: Tensor | int) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        if saved not in self.coming:
            self._fetch(saved)
        tensor = self.coming[saved]
        self._wait()
        if saved > 0:  # backward asks in about the opposite order
            self._fetch(saved - 1)
        return tensor

    def _fetch(self, place: int) -> None:
        home, device = self.saved[place]
        there = torch.empty(home.shape, dtype=home.dtype, device=device)
        with self._beside(device):
            there.copy_(home, non_blocking=True)
        self.coming[place] = there

    @contextmanager
    def _beside(self, device: torch.device) -> Iterator[None]:
        """On the stream of copies, once everything launched so far is done."""
        self.copying = self.copying or torch.cuda.Stream(device)
        self.copying.wait_stream(torch.cuda.current_stream(device))
        self.busy = True
        with torch.cuda.stream(self.copying):
            yield

    def _wait(self) -> None:
        """Let what is launched next wait for all copies; memory they read or wrote can then be given back."""
        if self.copying is not None and self.busy:  # a captured pass may wait only for what it has begun itself
            torch.cuda.current_stream(self.copying.device).wait_stream(self.copying)
        self.busy, self.leaving = False, None
        self.coming.clear()


def with_host_activations(loss: Callable[[Any], Tensor]) -> Callable[[Any], Tensor]:
    """The same loss of a pack, its saved activations in host memory."""
    activations = HostActivations()

    def offloaded(pack: Any) -> Tensor:
        with activations():
            return loss(pack)

    return offloaded
