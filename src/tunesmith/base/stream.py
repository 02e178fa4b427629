"""A 4-bit base in host memory, streamed to the GPU layer by layer while the layer before is being computed.

Every decoder layer's packed weights and constants lie in one pinned host buffer; two slots on the GPU take turns. A layer
announces itself as it is called, in forward and again when it is recomputed in backward: it waits for its slot to be
filled, and the other slot, which nothing reads any more, begins to fill with the layer that comes next. What is computed
is the same to the bit; memory holds two layers instead of all. Captured in a CUDA graph, copies become part of it. The
embedding, of which a step needs a few rows, is read from host memory where it lies.
"""

import functools
from collections.abc import Callable
from typing import Any

import bitsandbytes as bnb
import torch
from torch import Tensor, nn

from tunesmith.base.mapped import mapped
from tunesmith.errors import MachineError

ALIGNMENT = 256
"""Bytes to which a tensor is aligned in a slot."""


def stream_layers(model: Any, device: torch.device) -> int:
    """Move a 4-bit model that lies in host memory to ``device``, but for its decoder layers, which are streamed from then on, and
    an embedding that is not the head too. Layers must be recomputed in backward (``gradient_checkpointing``), since that is
    when a weight comes back.

    Returns:
        Bytes of the two slots.

    Raises:
        MachineError: the model's layers are not in 4 bits, or it has no list of decoder layers.
    """
    decoder = model.base_model
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        raise MachineError("This model has no list of decoder layers to stream.", "Train it without --offload-base.")
    homes = [_Home(layer) for layer in layers]
    if any(not home.tensors for home in homes):
        raise MachineError("Only 4-bit layers can be streamed, and this model has others.", "Use --load-in-4bit true.")
    stream = _LayerStream(homes, device)
    for layer in layers:
        _move_rest(layer, device)
    embedding = own_embedding(model)
    if embedding is not None:
        embedding.data = mapped(embedding.data, device)
    _move_rest(model, device)
    decoder.register_forward_pre_hook(lambda *_: stream.start())
    for number, layer in enumerate(layers):
        layer.announce = functools.partial(stream.use, number)  # type: ignore[assignment]
        layer.register_forward_pre_hook(lambda module, *_: module.announce())
    return sum(slot.nbytes for slot in stream.slots)


def own_embedding(model: Any) -> nn.Parameter | None:
    """The input embedding ``[V, H]`` of a model whose head has another matrix."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding is None or head is None or embedding.weight is head.weight:
        return None
    weight: nn.Parameter = embedding.weight
    return weight


def announce_recomputed(model: nn.Module) -> None:
    """Let every streamed layer announce itself when it is recomputed, too: transformers recomputes a layer's ``forward``,
    which calls no hook. To be called once gradient checkpointing is on.

    Raises:
        MachineError: a streamed layer is not recomputed, so its weights would be gone in backward.
    """
    for layer in model.modules():
        announce = getattr(layer, "announce", None)
        if announce is None:
            continue
        recompute = getattr(layer, "_gradient_checkpointing_func", None)
        if recompute is None or not getattr(layer, "gradient_checkpointing", False):
            raise MachineError(
                "A streamed base needs every layer recomputed, and this model has others.", "Use --offload-base never."
            )
        layer._gradient_checkpointing_func = functools.partial(_announced, announce, recompute)  # type: ignore[assignment]


def _announced(
    announce: Callable[[], None], recompute: Callable[..., Any], function: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    def announced(*inputs: Any, **named: Any) -> Any:
        announce()
        return function(*inputs, **named)

    return recompute(announced, *args, **kwargs)


class _Home:
    """A layer's 4-bit tensors and the pinned buffer they live in."""

    def __init__(self, layer: nn.Module) -> None:
        self.states = [m.weight for m in layer.modules() if isinstance(m, bnb.nn.Linear4bit)]
        self.tensors = [tensor for weight in self.states for tensor in _streamed(weight)]
        self.offsets, self.size = [], 0
        for tensor in self.tensors:
            self.offsets.append(self.size)
            self.size += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        self.buffer = torch.empty(self.size, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
        for tensor, offset in zip(self.tensors, self.offsets):
            self.buffer[offset : offset + tensor.nbytes].copy_(tensor.view(-1).view(torch.uint8))

    def move_into(self, slot: Tensor) -> None:
        """Let the weights' tensors be views of the slot, which holds this layer's bytes whenever it is used."""
        views = [
            slot[offset : offset + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            for tensor, offset in zip(self.tensors, self.offsets)
        ]
        for weight in self.states:
            state = weight.quant_state
            weight.data, state.absmax = views.pop(0), views.pop(0)
            if state.nested:
                state.state2.absmax = views.pop(0)
        self.tensors = []


def _streamed(weight: Any) -> list[Tensor]:
    """The large tensors of a 4-bit weight; its code books stay on the GPU."""
    state = weight.quant_state
    return [weight.data, state.absmax, *([state.state2.absmax] if state.nested else [])]


class _LayerStream:
    """Which layer lies in which slot, and what comes next."""

    def __init__(self, homes: list[_Home], device: torch.device) -> None:
        self.homes, self.device = homes, device
        self.slots = [torch.empty(max(h.size for h in homes), dtype=torch.uint8, device=device) for _ in range(2)]
        self.copying = torch.cuda.Stream(device)
        self.ready = [torch.cuda.Event(), torch.cuda.Event()]
        for number, home in enumerate(homes):
            for weight in home.states:
                _move_code_books(weight.quant_state, device)
            home.move_into(self.slots[number % 2])
        self.start()

    def start(self) -> None:
        """A forward pass begins: nothing is taken to be there, so that a captured pass holds every copy it needs."""
        self.loaded: list[int | None] = [None, None]
        self.forward = True

    def use(self, number: int) -> None:
        """Layer ``number`` is about to be computed."""
        slot = number % 2
        if self.loaded[slot] != number:
            self._fetch(number)
        torch.cuda.current_stream(self.device).wait_event(self.ready[slot])
        if number == len(self.homes) - 1:  # from here on only backward comes, from the last layer to the first
            self.forward = False
        following = number + 1 if self.forward else number - 1
        if 0 <= following < len(self.homes) and self.loaded[following % 2] != following:
            self._fetch(following)

    def _fetch(self, number: int) -> None:
        """Fill a layer's slot once everything launched so far, which may read it, is done."""
        slot, home = number % 2, self.homes[number]
        self.copying.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.copying):
            self.slots[slot][: home.size].copy_(home.buffer, non_blocking=True)
            self.ready[slot].record(self.copying)
        self.loaded[slot] = number


def _move_code_books(state: Any, device: torch.device) -> None:
    state.code = state.code.to(device)
    if state.nested:
        state.offset = state.offset.to(device)
        state.state2.code = state.state2.code.to(device)


def _move_rest(module: nn.Module, device: torch.device) -> None:
    """Move parameters and buffers that are not on a GPU yet."""
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            if not parameter.is_cuda:
                parameter.data = parameter.data.to(device)
        for name, buffer in part.named_buffers(recurse=False):
            part._buffers[name] = buffer.to(device)
