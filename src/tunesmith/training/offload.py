"""Activations in host memory between forward and backward: what autograd saves leaves the GPU and comes back when asked for.

With recomputation a layer saves nothing but its input, so this is one copy a layer each way. Copies run beside the computation:
one leaves while the next layer is computed, and what backward will most likely ask for next comes in advance. The host
buffers are pinned, made once and used again in every pass, so that the copies can be part of a CUDA graph.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from tunesmith.data.packing import Pack
from tunesmith.training.step import PackLoss

MIN_BYTES = 2**20
"""Smaller tensors stay where they are."""


class HostActivations:
    """Host buffers by the place in a forward pass at which they are filled and their size; none is ever given back, since a
    captured pass goes on using it. saved: what has left in this pass, in order, and the device it left. wanted: places that
    backward has not asked for. leaving: what is being copied, kept until it has been. coming: what was fetched and not taken, by
    its place. unjoined: whether there are copies that nobody has waited for."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[int, int], Tensor] = {}
        self.saved: list[tuple[Tensor, torch.device]] = []
        self.wanted: set[int] = set()
        self.leaving: Tensor | None = None
        self.coming: dict[int, Tensor] = {}
        self.copying: torch.cuda.Stream | None = None
        self.unjoined = False

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Within this block (a forward pass) large tensors saved for backward go to the host."""
        self.saved.clear()
        self.wanted.clear()
        with torch.autograd.graph.saved_tensors_hooks(self._out, self._back):
            yield
        self._join()

    def close(self) -> None:
        """Backward is over, or has failed. What came for a part of it that never asked is given back: a copy that nobody has
        waited for would end a capture, and hide the error."""
        self._join()
        self.coming.clear()

    def _leaves(self, tensor: Tensor) -> bool:
        return tensor.is_cuda and tensor.nbytes >= MIN_BYTES and not (tensor.requires_grad and tensor.is_leaf)

    def _out(self, tensor: Tensor) -> Tensor | int:
        if not self._leaves(tensor):
            return tensor
        place = len(self.saved), 1 << (tensor.nbytes - 1).bit_length()  # few sizes, whatever the packs
        if place not in self.buffers:
            self.buffers[place] = torch.empty(place[1], dtype=torch.uint8, pin_memory=torch.cuda.is_available())
        home = self.buffers[place][: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        self._join()
        with self._beside(tensor.device):
            home.copy_(tensor, non_blocking=True)
        self.saved.append((home, tensor.device))
        self.wanted.add(place[0])
        self.leaving = tensor
        return place[0]

    def _back(self, saved: Tensor | int) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        if saved not in self.coming:
            self._fetch(saved)
        self._join()
        self.wanted.discard(saved)
        following = max(self.wanted, default=saved)  # backward asks in about the opposite order
        if following not in self.coming:
            self._fetch(following)
        return self.coming.pop(saved)

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
        self.unjoined = True
        with torch.cuda.stream(self.copying):
            yield

    def _join(self) -> None:
        """Let what is launched next wait for all copies; memory they read or wrote can then be given back."""
        if self.copying is not None and self.unjoined:  # a captured pass may wait only for what it has begun itself
            torch.cuda.current_stream(self.copying.device).wait_stream(self.copying)
        self.unjoined, self.leaving = False, None


def with_host_activations(loss_of: PackLoss) -> PackLoss:
    """The same loss of a pack, its saved activations in host memory."""
    activations = HostActivations()

    def offloaded(pack: Pack) -> Tensor:
        with activations():
            return loss_of.of(pack)

    @contextmanager
    def attention() -> Iterator[None]:
        with loss_of.attention():
            try:
                yield
            finally:
                activations.close()

    return replace(loss_of, of=offloaded, attention=attention)
