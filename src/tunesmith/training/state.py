"""What a run is between two updates: all that decides how it goes on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from tunesmith.errors import RunError

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Position:
    """step: updates made. epoch, shard, window: where the next window of rows begins; rows that are not streamed are one
    shard. micro_batches: forward and backward passes made, from which dropout on a GPU is drawn."""

    step: int = 0
    epoch: int = 0
    window: int = 0
    micro_batches: int = 0
    shard: int = 0


@dataclass(frozen=True)
class Best:
    """The adapter of the evaluation with the lowest held-out loss, and that of which update it is."""

    step: int
    loss: float
    adapter: Tensors


@dataclass(frozen=True)
class State:
    """adapter: the trained tensors by name. optimizer, counts: its tensors and its plain numbers, as ``optimizer_state`` names
    them. random: states of torch's generators by device. unevaluated: the report of the update made last, where the evaluation
    that belongs to it has yet to be made. All tensors are copies in host memory."""

    position: Position
    adapter: Tensors
    optimizer: Tensors
    counts: dict[str, float]
    random: Tensors
    best: Best | None = None
    unevaluated: dict[str, Any] | None = None


def host_copy(parameters: Mapping[str, Parameter]) -> Tensors:
    """A copy of the adapter in host memory."""
    return {name: p.detach().to("cpu", copy=True).contiguous() for name, p in parameters.items()}


def put_adapter(parameters: Mapping[str, Parameter], adapter: Tensors) -> None:
    """Set the adapter's tensors, in place.

    Raises:
        RunError: names or shapes are not those of this model.
    """
    odd = sorted(parameters.keys() ^ adapter.keys())
    odd += [name for name in sorted(parameters.keys() & adapter.keys()) if parameters[name].shape != adapter[name].shape]
    if odd:
        raise RunError(f"The checkpoint is of another adapter: {odd[0]} differs.", "Train anew with another --output-dir.")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(adapter[name])


def random_state(device: torch.device) -> Tensors:
    """Where torch's generators are, bytes uint8."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_state(states: Tensors, device: torch.device) -> None:
    """Put torch's generators back to where they were."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def optimizer_state(optimizer: Optimizer) -> tuple[Tensors, dict[str, float]]:
    """Copies of the optimizer's tensors and plain numbers, named ``<index of the parameter>.<name>``."""
    tensors: Tensors = {}
    counts: dict[str, float] = {}
    for index, parameter in enumerate(_parameters(optimizer)):
        for name, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value.detach().to("cpu", copy=True).contiguous()
            elif isinstance(value, (int, float)):
                counts[f"{index}.{name}"] = value
    return tensors, counts


def set_optimizer_state(optimizer: Optimizer, tensors: Tensors, counts: Mapping[str, float]) -> None:
    """Put it back exactly: torch's own ``load_state_dict`` would cast.

    Raises:
        RunError: the state is of another number of parameters.
    """
    parameters = _parameters(optimizer)
    for key, value in [*tensors.items(), *counts.items()]:
        index, _, name = key.partition(".")
        if int(index) >= len(parameters):
            raise RunError("The checkpoint's optimizer is of another way to run.", "Resume on a device like the one it began on.")
        parameter = parameters[int(index)]
        optimizer.state[parameter][name] = value.to(parameter.device, copy=True) if isinstance(value, Tensor) else value


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
