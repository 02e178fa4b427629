"""Hard stops: training that could only end in nonsense ends here instead, before it does harm."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from tunesmith.errors import MachineError, ModelError, TrainingError


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether this is what running out of memory raises."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # torch's CPU allocator, CUDA itself and cuBLAS
    said = ("allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in said)


@contextmanager
def enough_memory() -> Iterator[None]:
    """Turns running out of memory within this block into a MachineError that says what takes less."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        raise MachineError(
            "This machine's memory is not enough for the run as planned.",
            "Try `--gradient-checkpointing true`, a smaller `--per-device-train-batch-size`, or `--dequantize never`.",
        ) from error


def device_failure(error: BaseException) -> str | None:
    """What a GPU that failed says of it, in one line; None for any other error. Nothing works on it again in this process."""
    lost = isinstance(error, torch.AcceleratorError) or (isinstance(error, RuntimeError) and str(error).startswith("CUDA error"))
    return str(error).partition("\n")[0] if lost and not ran_out_of_memory(error) else None


@contextmanager
def working_device(then: str) -> Iterator[None]:
    """Turns a GPU that fails within this block into a MachineError. then: the command that goes on."""
    try:
        yield
    except RuntimeError as error:
        if (said := device_failure(error)) is None:
            raise
        raise MachineError(f"The GPU failed ({said}).", f"Once it works again, {then}.") from error


def check_loss(loss: float, step: int, where: Sequence[str]) -> None:
    """Raises TrainingError if the loss of a batch is NaN or infinite, naming the update and the rows."""
    if not math.isfinite(loss):
        rows = ", ".join(where[:3]) + (f" and {len(where) - 3} more" if len(where) > 3 else "")
        raise TrainingError(
            f"The loss became {loss} at update {step} (rows: {rows}); the adapter was not updated with it.",
            "Look at these rows, or lower the learning rate.",
        )


class Divergence:
    """Notices a training that made its model worse than one that guesses, whose loss is ``log(vocabulary)``, and far worse than it
    was at first: clipped gradients and normalised activations keep such a run finite to its end."""

    PATIENCE = 3
    """Such updates in a row; one alone may have read odd rows."""

    def __init__(self, vocabulary: int, first: float = 0.0) -> None:
        """first: the loss of the run's first update, if it was made before."""
        self.vocabulary, self.first, self.count = vocabulary, first, 0

    def check(self, loss: float, step: int) -> None:
        """Raises TrainingError if the mean loss of this update makes it certain."""
        self.first, guessing = self.first or loss, math.log(self.vocabulary)
        self.count = self.count + 1 if loss > max(0.999 * guessing, 1.5 * self.first) else 0
        if self.count == self.PATIENCE:
            raise TrainingError(
                f"Training has diverged: the loss was {self.first:.1f} at first and is {loss:.1f} at update {step}, for the "
                f"{self.count}rd time in a row no better than guessing among {self.vocabulary:,} tokens ({guessing:.1f}).",
                "Lower the learning rate.",
            )


def check_range(model: Any, loss: Callable[[], Tensor]) -> None:
    """Raises ModelError if this pass of a model that computes in fp16 leaves that type's range, naming where."""
    outside: list[str] = []

    def watch(name: str, module: Any, given: Any, made: Any) -> None:
        first = made[0] if isinstance(made, tuple) else made
        if not outside and isinstance(first, Tensor) and not bool(torch.isfinite(first).all()):
            outside.append(name)

    hooks = [module.register_forward_hook(partial(watch, name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            fits = math.isfinite(float(loss()))
    finally:
        for hook in hooks:
            hook.remove()
    if not fits:
        raise ModelError(
            f"This model does not compute in fp16: {outside[0] if outside else 'its head'} gives values above 65504, the largest.",
            "Use `--dtype float32`, or `--dtype bfloat16` on a GPU that has it.",
        )


def check_gradients(parameters: Mapping[str, Parameter], step: int) -> None:
    """At the first update: raises TrainingError if an adapter tensor has no gradient, so is not being trained."""
    without = [name for name, p in parameters.items() if p.grad is None]
    if without:
        raise TrainingError(
            f"{len(without)} of {len(parameters)} adapter tensors got no gradient at update {step}, first {without[0]}.",
            "This layer takes no part in the model's answer; leave it out with --lora-target-modules.",
        )


def check_norm(norm: float, step: int, half: bool = False) -> None:
    """Raises TrainingError if the gradient's norm is NaN or infinite; the update has not been made. half: computed in fp16."""
    if not math.isfinite(norm):
        raise TrainingError(
            f"The gradient became {norm} at update {step}; the adapter was not updated with it.",
            "Use --dtype float32 (fp16 ends at 65504), or lower the learning rate." if half else "Lower the learning rate.",
        )


def check_held_out(loss: float, step: int) -> None:
    """Raises TrainingError if the loss over the held-out rows is NaN or infinite."""
    if not math.isfinite(loss):
        raise TrainingError(
            f"The held-out loss became {loss} after update {step}.", "Look at the held-out rows, or lower the learning rate."
        )


def check_saved(adapter: Mapping[str, Tensor], step: int) -> None:
    """Raises TrainingError if the adapter of update ``step``, about to be saved, is not finite."""
    for name, tensor in adapter.items():
        if not bool(torch.isfinite(tensor).all()):
            raise TrainingError(
                f"{name} is not finite after update {step}; it was not saved, the checkpoint before it was.",
                "Lower the learning rate.",
            )


def check_changed(before: Mapping[str, Tensor], parameters: Mapping[str, Parameter]) -> None:
    """At the end: raises TrainingError if training left the adapter as it was, or not finite."""
    for name, parameter in parameters.items():
        if not bool(torch.isfinite(parameter).all()):
            raise TrainingError(f"{name} is not finite after training.", "Lower the learning rate.")
    if all(torch.equal(before[name], p.detach().cpu()) for name, p in parameters.items()):
        raise TrainingError("The adapter is the same after training as before.", "Raise the learning rate or train longer.")
