"""peft's LoRA layers with the lean QLoRA linear inside: same parameters, same files, another forward."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import bitsandbytes as bnb
import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as PeftLinear
from peft.tuners.lora.bnb import Linear4bit as PeftLinear4bit
from peft.tuners.lora.bnb import Linear8bitLt as PeftLinear8bitLt
from torch import Tensor, nn

from tunesmith.kernels.factors import Behind, in_type, room
from tunesmith.kernels.lora_linear import lora_linear

BLOCK_ELEMENTS = 16 * 2**20
"""Weights dequantised at a time on a GPU (32 MB in bf16)."""


class _Lean:
    """The forward both lean layers share. ``group`` and ``member`` are set once the model's structure is known."""

    group: "LinearGroup | None" = None
    member: int = 0

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.group is None or args or kwargs or self.merged or x.dtype != self.group.dtype:  # type: ignore[attr-defined]
            return super().forward(x, *args, **kwargs)  # type: ignore[misc]
        if self.group.fixed is not None:
            return self.group(x, self.member)
        if self.disable_adapters:  # type: ignore[attr-defined]
            return self.group.base(x, self.member)
        if self.active_adapters != [self.group.adapter]:  # type: ignore[attr-defined]
            return super().forward(x)  # type: ignore[misc]
        return self.group(x, self.member)


class LeanLinear(_Lean, PeftLinear):
    """LoRA over a linear whose weight is stored as it is."""


class LeanLinear4bit(_Lean, PeftLinear4bit):
    """LoRA over a linear whose weight is stored in 4 bits."""


CUSTOM_MODULES: dict[type[nn.Module], type[nn.Module]] = {
    bnb.nn.Linear4bit: LeanLinear4bit,
    bnb.nn.Linear8bitLt: PeftLinear8bitLt,  # an nn.Linear too: without this line it would be taken for a plain one
    nn.Linear: LeanLinear,
}
"""For peft's ``LoraConfig``: what to put around which layer. 8-bit layers keep peft's own."""


class LinearGroup:
    """Linears of one scaling that read the same tensor (q, k, v; gate, up), computed together when the first is called.

    members: the lean layers, in the order the model calls them. adapter: the adapter's name. kept: the stacked weights
    ``[N, K]`` in the compute type, or None to dequantise them at every use (same numbers, less memory, slower). fixed: what
    computes in the place of all this while answers are decoded. room: columns that weights have more on a GPU.
    """

    fixed: "Callable[[Tensor], tuple[Tensor, ...]] | None" = None

    def __init__(self, members: list[Any], adapter: str, dtype: torch.dtype, keep: bool, salt: int = 0) -> None:
        self.members, self.adapter, self.dtype, self.salt = members, adapter, dtype, salt
        self.rows = [layer.base_layer.out_features for layer in members]
        self.size = members[0].base_layer.in_features
        self.ranks = self._ranks()
        self.room = room(sum(self.ranks))
        self.homes: list[Tensor] = []
        self.wide: Tensor | None = None
        self.bias = self._stacked_bias()
        if keep:
            self.wide = self._stack()
            self._give_homes(self.wide)
        self._input: Tensor | None = None
        self._outputs: list[Tensor | None] = []

    @property
    def kept(self) -> Tensor | None:
        return self.wide[:, : self.size] if self.wide is not None else None

    def weight(self) -> Iterator[Tensor]:
        """The stacked frozen weights as blocks of rows, in order: ``[N, K]``, on a GPU ``[N, K + room]`` with every lora_B as it is
        now behind its layer's rows."""
        if self.wide is None:
            yield from self._made_anew(with_factors=True)
            return
        for member, home in zip(self.members, self.homes):
            factor = self._factor(member)
            if factor.data_ptr() != home.data_ptr():
                home.copy_(factor)
        yield self.wide

    def frozen(self) -> Iterator[Tensor]:
        """The same without any factor, ``[N, K]``, always made anew: for weights that are not kept."""
        return self._made_anew(with_factors=False)

    def _made_anew(self, with_factors: bool) -> Iterator[Tensor]:
        first = 0
        for member, rank in zip(self.members, self.ranks):
            layer = member.base_layer
            behind = Behind(self.room, first, self._factor(member)) if with_factors and _has_room(layer.weight) else None
            for rows in _row_blocks(layer):
                yield _dequantise(layer, self.dtype, rows, behind)
            first += rank

    def __call__(self, x: Tensor, member: int) -> Tensor:
        """Output of one member; all members' outputs are computed at the first call and handed out once each."""
        if self._input is not x or self._outputs[member] is None:
            self._input, self._outputs = x, list(self._compute(x))
        output = self._outputs[member]
        assert output is not None
        self._outputs[member] = None
        if all(out is None for out in self._outputs):
            self._input = None
        return output

    def base(self, x: Tensor, member: int) -> Tensor:
        """Output of one member without its adapter."""
        start = sum(self.rows[:member])
        part = slice(start, start + self.rows[member])
        bias = self.bias[part] if self.bias is not None else None
        weight = self.kept[part] if self.kept is not None else _whole(self.members[member].base_layer, self.dtype)
        return F.linear(x, weight, bias)

    def _compute(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.fixed is not None:
            return self.fixed(x)
        assert self._ranks() == self.ranks, "an adapter of other ranks would meet what the former left behind the weight"
        layers, name = self.members, self.adapter
        dropout = layers[0].lora_dropout[name]
        p = dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
        return lora_linear(
            x,
            self.weight,
            self.bias,
            [layer.lora_A[name].weight for layer in layers],
            [layer.lora_B[name].weight for layer in layers],
            layers[0].scaling[name],
            p,
            self.salt,
        )

    def _stacked_bias(self) -> Tensor | None:
        layers = [layer.base_layer for layer in self.members]
        if all(layer.bias is None for layer in layers):
            return None
        parts = [layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias for layer in layers]
        return torch.cat([part.to(self.dtype) for part in parts])

    def _ranks(self) -> list[int]:
        return [layer.lora_A[self.adapter].weight.shape[0] for layer in self.members]

    def _factor(self, member: Any) -> Tensor:
        """Its lora_B in the compute type."""
        return in_type(member.lora_B[self.adapter].weight, self.dtype).detach()

    def _give_homes(self, wide: Tensor) -> None:
        """Tell every lora_B where its copy in the compute type is read: behind the columns of its own rows, if there is room."""
        if wide.shape[1] == self.size:
            return
        row, column = 0, self.size
        for layer, count in zip(self.members, self.rows):
            factor = layer.lora_B[self.adapter].weight
            factor.home = wide[row : row + count, column : column + factor.shape[1]]
            self.homes.append(factor.home)
            row, column = row + count, column + factor.shape[1]

    def _stack(self) -> Tensor:
        """One matrix for all members. Plain layers then hold views of it, so that nothing is stored twice."""
        layers = [member.base_layer for member in self.members]
        weight = layers[0].weight
        columns = self.size + (self.room if _has_room(weight) else 0)
        stacked = torch.zeros(sum(self.rows), columns, dtype=self.dtype, device=weight.device)
        for layer, part in zip(layers, stacked[:, : self.size].split(self.rows)):
            for rows in _row_blocks(layer):
                _dequantise(layer, self.dtype, rows, out=part[rows])
            if not isinstance(layer, bnb.nn.Linear4bit):
                layer.weight.data = part
        return stacked


def _has_room(weight: Tensor) -> bool:
    """Whether factors stand behind it: on a GPU."""
    return weight.is_cuda


def _whole(layer: Any, dtype: torch.dtype) -> Tensor:
    """A linear's weight ``[N, K]`` in this type."""
    return _dequantise(layer, dtype, slice(0, layer.out_features))


def _row_blocks(layer: Any) -> list[slice]:
    """Rows that are dequantised at a time: all, or on a GPU at most `BLOCK_ELEMENTS` of a 4-bit weight."""
    rows, size = layer.out_features, layer.in_features
    if not (isinstance(layer, bnb.nn.Linear4bit) and layer.weight.is_cuda):
        return [slice(0, rows)]
    count = math.ceil(rows * size / BLOCK_ELEMENTS)
    block = layer.weight.quant_state.blocksize  # so many rows end with a quantisation block, whatever their width
    step = math.ceil(rows / count / block) * block
    return [slice(first, min(first + step, rows)) for first in range(0, rows, step)]


def _dequantise(
    layer: Any, dtype: torch.dtype, rows: slice, behind: Behind | None = None, out: Tensor | None = None
) -> Tensor:  # fmt: skip
    """Rows of a linear's weight in this type, ``[n, K]``, and what stands behind them; or into out ``[n, K]``, any stride between
    its rows."""
    assert behind is None or out is None
    weight, size = layer.weight, layer.in_features
    packed = isinstance(layer, bnb.nn.Linear4bit)
    if packed and weight.is_cuda and weight.quant_state.quant_type == "nf4":
        from tunesmith.kernels.fused.nf4 import dequantise

        return dequantise(weight.data, weight.quant_state, dtype, out, rows, behind)
    if packed:
        part = bnb.functional.dequantize_4bit(weight.data, weight.quant_state).to(dtype)[rows]
    else:
        part = weight.data[rows].to(dtype)
    if behind is not None:
        out = part.new_empty(part.shape[0], size + behind.columns)
        behind.write(out[:, size:], rows)
    if out is None:
        return part
    out[:, :size] = part
    return out


def lean_layers(model: nn.Module) -> dict[str, Any]:
    """The lean layers of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, _Lean)}


@contextmanager
def watch_inputs(layers: dict[str, Any]) -> Iterator[list[tuple[str, int]]]:
    """Within this block every call of a layer is noted as (name, identity of its input)."""
    calls: list[tuple[str, int]] = []
    alive: list[Tensor] = []  # keeps the identities from being reused

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            alive.append(inputs[0])
            calls.append((name, id(inputs[0])))

        return hook

    handles = [layer.register_forward_pre_hook(note(name)) for name, layer in layers.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
