"""Proves that every update has the learning rate transformers' schedulers would give it."""

import pytest
import torch
from transformers import get_scheduler

from tunesmith.recipe import Recipe
from tunesmith.training.schedule import default_learning_rate, learning_rate

KINDS = ["linear", "cosine", "constant", "constant_with_warmup"]


def reference(kind: str, total: int, warmup: int, peak: float) -> list[float]:
    """The rates of all updates, from transformers, one optimizer step after another."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = get_scheduler(kind, optimizer, num_warmup_steps=warmup, num_training_steps=total)
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (2, 0), (10, 0), (10, 3), (10, 9), (10, 10), (220, 22)])
def test_every_update_has_transformers_rate(kind: str, total: int, warmup: int) -> None:
    rates = [learning_rate(step, total, 3e-4, kind, warmup) for step in range(total)]
    assert rates == pytest.approx(reference(kind, total, warmup, 3e-4), rel=1e-9, abs=1e-18)


@pytest.mark.parametrize("kind", KINDS)
def test_the_rate_never_exceeds_its_peak_and_is_never_negative(kind: str) -> None:
    assert all(0 <= learning_rate(step, 50, 1e-3, kind, 5) <= 1e-3 for step in range(60))


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_it_falls_from_its_peak_to_nearly_nothing(kind: str) -> None:
    rates = [learning_rate(step, 100, 1.0, kind, 10) for step in range(100)]
    assert max(rates) == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[99] < 0.02


def test_every_kind_a_recipe_allows_is_known() -> None:
    assert Recipe.model_fields["lr_scheduler_type"].annotation.__args__ == tuple(KINDS)  # type: ignore[union-attr]


@pytest.mark.parametrize(("hidden", "rate"), [(576, 1.3e-3), (2000, 5e-4), (3072, 3.6e-4)])
def test_the_default_rate_follows_the_models_width(hidden: int, rate: float) -> None:
    assert default_learning_rate(hidden) == pytest.approx(rate, rel=1e-9)


def test_wider_models_get_smaller_rates_of_two_digits() -> None:
    rates = [default_learning_rate(hidden) for hidden in (256, 576, 1024, 2048, 4096, 8192)]
    assert rates == sorted(rates, reverse=True)
    assert all(float(f"{rate:.1e}") == rate for rate in rates)
