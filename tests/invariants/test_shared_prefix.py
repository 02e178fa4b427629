"""Proves that sharing prefixes is exact: every gradient is that of the padded, unshared batch, in any number of packs."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import tunesmith as ts
from tunesmith.base.adapter import adapter_parameters, attach
from tunesmith.base.lean import speed_up
from tunesmith.data.loader import Loader
from tunesmith.data.render import IGNORE, Example
from tunesmith.recipe import Recipe
from tunesmith.training.step import fast_loss, plain_loss

FAMILIES = {"llama": {}, "qwen2": {}, "mistral": {"sliding_window": 9}}


def build(family):
    """A model of two layers in float64, with an adapter that is not zero."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 90, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "initializer_range": 0.2,
    }  # fmt: skip
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes, **FAMILIES[family]))
    base = base.to(torch.float64).requires_grad_(False).eval()
    model = attach(base, Recipe.of({"load_in_4bit": False, "lora_dropout": 0.0}), "x", None)
    for parameter in adapter_parameters(model).values():
        parameter.data = torch.randn(parameter.shape, dtype=torch.float64) * 0.2
    speed_up(model, torch.float64, keep=True)
    return base, model


def rows(trained_from):
    """Documents under two system prompts, one of which goes on alike for some, and one document that is like no other."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda n: torch.randint(3, 90, (n,), generator=generator).tolist()  # noqa: E731
    first, second = draw(20), draw(12)
    deeper = first + draw(30)
    made = []
    for begin, lengths in ((first, (4, 9, 5)), (deeper, (7, 3, 6, 5)), (second, (6, 2, 8))):
        for length in lengths:
            ids = begin + draw(length)
            start = trained_from if trained_from is not None else len(begin)
            made.append(Example(ids, [IGNORE] * start + ids[start:], f"row {len(made)}"))
    alone = draw(11)
    return [[example] for example in [*made, Example(alone, list(alone), "alone")]]


def gradients(model, loss_of, packs):
    """The mean loss over the trained tokens of an update, and its gradient."""
    model.zero_grad()
    trained, total = sum(len(pack.targets) for pack in packs), 0.0
    for pack in packs:
        loss = loss_of(pack)
        (loss / trained).backward()
        total += float(loss.detach()) / trained
    return total, {name: parameter.grad.clone() for name, parameter in adapter_parameters(model).items()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("batch", "accumulation"), [(11, 1), (4, 3), (2, 6)])
@pytest.mark.parametrize("trained_from", [None, 5, 1], ids=["answers trained", "half the prefix trained", "all trained"])
def test_every_gradient_is_that_of_the_padded_unshared_batch(family, batch, accumulation, trained_from):
    base, model = build(family)
    data = rows(trained_from)
    (shared,), (padded,) = (list(Loader(data, batch, accumulation, seed=3, shared_prefix=flag).epoch(0)) for flag in (True, False))
    assert sum(len(p.input_ids) for p in shared) < 0.75 * sum(len(p.input_ids) for p in padded)
    loss, mine = gradients(model, fast_loss(base), shared)
    expected, theirs = gradients(model, plain_loss(base), padded)
    assert abs(loss - expected) <= 1e-10
    for name, gradient in theirs.items():
        assert gradient.abs().max() > 1e-6, name
        assert (mine[name] - gradient).abs().max() <= 1e-10, name


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """Rows under two long system prompts."""
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    systems = ["You answer as an old sailor would. " * 8, "You are terse and dislike the sea, and you say so at every turn. " * 5]
    asked = ["the wind", "a boat", "the moon", "a storm", "the harbour", "fish", "rope", "the tide", "a gull", "salt"]
    with path.open("w") as file:
        for number, about in enumerate(asked):
            said = [("system", systems[number % 2]), ("user", f"Say something of {about}."), ("assistant", f"Of {about}? Aye.")]
            file.write(json.dumps({"messages": [{"role": r, "content": c} for r, c in said]}) + "\n")
    return path


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_bundled_model_has_the_same_loss_curve_with_and_without(prompts, tmp_path, accumulation):
    def curve(shared):
        run = ts.train(
            "smollm2-135m", str(prompts), output_dir=str(tmp_path / str(shared)), max_steps=3, learning_rate=1e-4, lora_dropout=0.0,
            dtype="float32", per_device_train_batch_size=5 // accumulation, gradient_accumulation_steps=accumulation,
            shared_prefix=shared, dequantize="always",
        )  # fmt: skip
        return [metric["loss"] for metric in run.metrics]

    mine, plain = curve(True), curve(False)
    assert len(mine) == 3
    assert mine[0] != mine[1]
    assert max(abs(a - b) for a, b in zip(mine, plain)) <= 1e-5
