"""The adapter's linears as they are now, for decoding: few tokens at a time, no gradient, nothing built anew at each call."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.base.linear import LinearGroup, lean_layers


class FixedLinears:
    """What a `LinearGroup` computes, ``x Ŵᵀ + b + (x Aᵀ) B``, with the factors of all its members in two matrices.

    A ``[R, K]`` has the members' rows one below the other, the scaling in them. B ``[R, N]`` has the members' factors as blocks
    along its diagonal: zeros cost less here than calls. Without the adapter there are none.
    """

    def __init__(self, group: LinearGroup, with_adapter: bool) -> None:
        self.group = group
        self.A: Tensor | None = None
        if with_adapter:
            self.A, self.B = self._factors()

    def refresh(self) -> None:
        """Take the adapter as it is now, in place: a captured step that reads these goes on with it."""
        if self.A is not None:
            A, B = self._factors()
            self.A.copy_(A)
            self.B.copy_(B)

    def _factors(self) -> tuple[Tensor, Tensor]:
        group, name = self.group, self.group.adapter
        factors = [(layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach()) for layer in group.members]
        A = torch.cat([a for a, _ in factors]) * group.members[0].scaling[name]
        return A.to(group.dtype), torch.block_diag(*(b.T for _, b in factors)).to(group.dtype)

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """Outputs of all members, ``[*, n_i]`` each."""
        group, flat = self.group, x.reshape(-1, x.shape[-1])
        if group.kept is not None:
            y = F.linear(flat, group.kept, group.bias)
        else:
            y = torch.cat([F.linear(flat, rows) for rows in group.frozen()], dim=1)
            y = y if group.bias is None else y.add_(group.bias)
        if self.A is not None:
            y.addmm_(flat @ self.A.T, self.B)
        return y.view(*x.shape[:-1], -1).split(group.rows, dim=-1)


def fix_linears(model: Any, with_adapter: bool) -> list[FixedLinears]:
    """For every group of the model. What is not grouped is left to peft."""
    groups = {id(layer.group): layer.group for layer in lean_layers(model).values() if layer.group is not None}
    return [FixedLinears(group, with_adapter) for group in groups.values()]


@contextmanager
def use_fixed(fixed: list[FixedLinears]) -> Iterator[None]:
    """Within this block the groups compute by these."""
    for linears in fixed:
        linears.group.fixed = linears
    try:
        yield
    finally:
        for linears in fixed:
            linears.group.fixed = None


def all_fixed(model: Any) -> bool:
    """Whether every layer with an adapter is in a group, so that peft's own switch need not be touched to leave it out."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    layers = [module for module in model.modules() if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))]
    return all(getattr(layer, "group", None) is not None for layer in layers)
