"""Proves that the optimizer is torch's AdamW with the recipe's numbers, and that a CPU is not asked for what it lacks."""

from typing import Any

import pytest
import torch
from torch.nn import Parameter

from tunesmith.errors import MachineError
from tunesmith.recipe import Recipe
from tunesmith.training.optimizer import make_optimizer

CPU = torch.device("cpu")
SETTINGS: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.1, "adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-6},
]


def parameters() -> list[Parameter]:
    torch.manual_seed(0)
    return [Parameter(torch.randn(8, 64)), Parameter(torch.zeros(64, 8))]


def walk(optimizer: torch.optim.Optimizer, weights: list[Parameter]) -> None:
    """Twenty updates, the learning rate changing as a schedule does."""
    torch.manual_seed(1)
    for step in range(20):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / 20)
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("settings", SETTINGS, ids=["defaults", "all set"])
def test_its_updates_are_torchs_own(settings: dict[str, Any]) -> None:
    recipe, ours, theirs = Recipe(**settings), parameters(), parameters()
    walk(make_optimizer(ours, recipe, 1e-2, CPU), ours)
    plain = torch.optim.AdamW(
        theirs,
        lr=1e-2,
        betas=(recipe.adam_beta1, recipe.adam_beta2),
        eps=recipe.adam_epsilon,
        weight_decay=recipe.weight_decay,
        foreach=False,
        fused=False,
    )
    walk(plain, theirs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_its_numbers_are_the_recipes() -> None:
    recipe = Recipe(weight_decay=0.1, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-6)
    (group,) = make_optimizer(parameters(), recipe, 5e-4, CPU).param_groups
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (5e-4, (0.8, 0.95), 1e-6, 0.1)


def test_an_adapter_does_not_decay_by_default() -> None:
    weights = [Parameter(torch.ones(4))]
    optimizer = make_optimizer(weights, Recipe(), 0.1, CPU)
    weights[0].grad = torch.zeros(4)
    optimizer.step()
    assert torch.equal(weights[0], torch.ones(4))


@pytest.mark.parametrize("name", ["adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"])
def test_what_needs_a_gpu_is_refused_on_a_cpu(name: str) -> None:
    with pytest.raises(MachineError, match=f"{name} needs a GPU") as caught:
        make_optimizer(parameters(), Recipe(optim=name), 1e-3, CPU)
    assert "adamw_torch" in caught.value.fix
