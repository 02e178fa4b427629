"""All adapter tensors in one buffer and their gradients in another: norm, clipping and update are one kernel each."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter


class FlatParameters:
    """Parameters as views of ``flat`` ``[n]``; their gradients are added into ``flat.grad`` ``[n]`` by `gather`.

    The parameters keep their identity, names and shapes: a module does not notice. Gradients present now are taken. If they
    are wider than the compute type, each has a ``compute_copy`` too, a view of one buffer that `refresh` brings up to date
    (one cast instead of hundreds).
    """

    def __init__(self, parameters: Sequence[Parameter], compute: torch.dtype) -> None:
        sizes = [p.nelement() for p in parameters]
        self.parameters = parameters
        self.flat = Parameter(torch.cat([p.detach().reshape(-1) for p in parameters]))
        self.flat.grad = torch.zeros_like(self.flat)
        shapes = [p.shape for p in parameters]
        self.slopes = [part.view(shape) for part, shape in zip(self.flat.grad.split(sizes), shapes)]
        self.gather()
        for parameter, values in zip(parameters, self.flat.detach().split(sizes)):
            parameter.data = values.view(parameter.shape)
        self.copy: Tensor | None = None
        if self.flat.dtype != compute:
            self.copy = self.flat.detach().to(compute)
            for parameter, values in zip(parameters, self.copy.split(sizes)):
                parameter.compute_copy = values.view(parameter.shape)  # type: ignore[attr-defined]

    def gather(self) -> None:
        """Add the parameters' gradients and take them away: a few kernels for all, where autograd would add one by one."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        assert len(gradients) == len(self.slopes)  # the first update checks that every tensor gets one
        torch._foreach_add_(self.slopes, gradients)
        for parameter in self.parameters:
            parameter.grad = None

    def refresh(self) -> None:
        """Bring the compute copies up to date."""
        if self.copy is not None:
            self.copy.copy_(self.flat)

    def release(self) -> None:
        """Take the compute copies away, so that none can fall behind its parameter."""
        for parameter in self.parameters:
            if hasattr(parameter, "compute_copy"):
                del parameter.compute_copy

    @property
    def grad(self) -> Tensor:
        assert self.flat.grad is not None
        return self.flat.grad
