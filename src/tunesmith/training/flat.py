"""All adapter tensors in one buffer and their gradients in another: norm, clipping and update are one kernel each."""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter


class FlatParameters:
    """Parameters as views of ``flat`` ``[n]``; their gradients are summed in ``flat.grad`` ``[n]``.

    The parameters keep their identity, names and shapes: a module does not notice. Gradients present now are taken. Each
    parameter's ``gradient_sum`` is its part of the sum, to which a backward pass may add by itself; what it leaves to autograd,
    `gather` adds. If parameters are wider than the compute type, each has a ``compute_copy`` too, which `refresh` brings up to
    date: its ``home`` if it has one of that type, where it is read in the place of a copy (see `base.linear`), else a view of one
    buffer (one cast instead of hundreds).
    """

    def __init__(self, parameters: Sequence[Parameter], compute: torch.dtype) -> None:
        sizes = [p.nelement() for p in parameters]
        self.parameters = parameters
        self.flat = Parameter(torch.cat([p.detach().reshape(-1) for p in parameters]))
        self.flat.grad = torch.zeros_like(self.flat)
        shapes = [p.shape for p in parameters]
        self.sums = [part.view(shape) for part, shape in zip(self.flat.grad.split(sizes), shapes)]
        self.gather()
        for parameter, values in zip(parameters, self.flat.detach().split(sizes)):
            parameter.data = values.view(parameter.shape)
        self.copy: Tensor | None = None
        self.scatter: Callable[[Tensor], None] | None = None
        if self.flat.dtype != compute:
            self.copy = torch.empty_like(self.flat.detach(), dtype=compute)
            homes = [getattr(p, "home", None) for p in parameters]
            homes = [None if home is None or home.dtype != compute else home for home in homes]
            for parameter, values, home in zip(parameters, self.copy.split(sizes), homes):
                parameter.compute_copy = values.view(parameter.shape) if home is None else home  # type: ignore[attr-defined]
            self.scatter = _scatter(sizes, homes)
            self.refresh()
        for parameter, total in zip(parameters, self.sums):
            parameter.gradient_sum = total  # type: ignore[attr-defined]

    def gather(self) -> None:
        """Add the gradients that autograd has left and take them away: a few kernels for all, where it would add one by one."""
        left = [(total, p.grad) for total, p in zip(self.sums, self.parameters) if p.grad is not None]
        if left:
            torch._foreach_add_(*map(list, zip(*left)))
        for parameter in self.parameters:
            parameter.grad = None

    def refresh(self) -> None:
        """Bring the compute copies up to date."""
        if self.copy is not None:
            self.copy.copy_(self.flat)
        if self.scatter is not None:
            self.scatter(self.flat.detach())

    def release(self) -> None:
        """Take the compute copies away, so that none can fall behind its parameter, and the sums, which nobody reads any more."""
        for parameter in self.parameters:
            del parameter.gradient_sum  # type: ignore[attr-defined]
            if hasattr(parameter, "compute_copy"):
                del parameter.compute_copy

    @property
    def grad(self) -> Tensor:
        assert self.flat.grad is not None
        return self.flat.grad


def _scatter(sizes: Sequence[int], homes: Sequence[Tensor | None]) -> Callable[[Tensor], None] | None:
    """What fills the homes from the flat buffer; None if there are none."""
    there = [(offset, home) for offset, home in zip(itertools.accumulate(sizes, initial=0), homes) if home is not None]
    if not there:
        return None
    from tunesmith.kernels.fused.scatter import Scatter

    return Scatter(*zip(*there))
