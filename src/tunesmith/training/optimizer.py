"""The optimizer of the adapter's weights."""

from collections.abc import Iterable

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from tunesmith.errors import MachineError
from tunesmith.recipe import Recipe


def check_optimizer(recipe: Recipe, device: torch.device) -> None:
    """Raises MachineError for an 8-bit or paged optimizer on a CPU."""
    if recipe.optim != "adamw_torch" and device.type != "cuda":
        raise MachineError(f"optim: {recipe.optim} needs a GPU; bitsandbytes has no CPU form of it.", "Use `--optim adamw_torch`.")


def make_optimizer(parameters: Iterable[Parameter], recipe: Recipe, peak: float, device: torch.device) -> Optimizer:
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), or bitsandbytes' 8-bit or paged form of it.

    Raises:
        MachineError: an 8-bit or paged optimizer on a CPU.
    """
    settings = {
        "lr": peak,
        "betas": (recipe.adam_beta1, recipe.adam_beta2),
        "eps": recipe.adam_epsilon,
        "weight_decay": recipe.weight_decay,
    }
    if recipe.optim == "adamw_torch":
        # capturable: the count of steps lies on the GPU, where a captured update can see it
        return torch.optim.AdamW(parameters, fused=True, capturable=device.type == "cuda", **settings)  # type: ignore[arg-type]
    check_optimizer(recipe, device)
    import bitsandbytes as bnb

    kinds = {
        "adamw_8bit": bnb.optim.AdamW8bit,
        "paged_adamw_8bit": bnb.optim.PagedAdamW8bit,
        "paged_adamw_32bit": bnb.optim.PagedAdamW32bit,
    }
    return kinds[recipe.optim](parameters, **settings)
