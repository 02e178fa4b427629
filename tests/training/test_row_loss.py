"""Proves that each row's loss is its own: that of the row alone, whatever shares its pack and its beginning."""

import random

import pytest
import torch
from transformers import AutoModelForCausalLM

from tunesmith.data.example import IGNORE, Example
from tunesmith.training.row_loss import row_losses
from tunesmith.training.step import choose_loss, plain_loss


@pytest.fixture(scope="module")
def model(tiny_model_folder):
    return AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def examples():
    draw = random.Random(3)
    prefix = [draw.randrange(3, 300) for _ in range(20)]
    made = []
    for number in range(17):
        ids = (prefix if number % 3 else []) + [draw.randrange(3, 300) for _ in range(draw.randrange(2, 30))]
        labels = [IGNORE if draw.random() < 0.5 else token for token in ids]
        made.append(Example(ids, labels, f"row {number}"))
    made.append(Example([5, 6, 7], [IGNORE] * 3, "nothing trained"))
    made.append(Example(list(prefix), list(prefix), "the prefix itself, all of it trained"))
    made.append(made[1])
    return made


def alone(model, example):
    logits = model(input_ids=torch.tensor([example.input_ids])).logits[0, :-1]
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(example.labels[1:]), reduction="sum", ignore_index=IGNORE))


@pytest.mark.parametrize("room", [1, 60, 2048])
@pytest.mark.parametrize("choose", [lambda model: choose_loss(model)[0], plain_loss], ids=["chosen", "plain"])
def test_a_rows_loss_is_that_of_the_row_alone(model, examples, room, choose):
    found = row_losses(model, choose(model), examples, room)
    assert [loss.tokens for loss in found] == [example.trained for example in examples]
    with torch.no_grad():
        expected = [alone(model, example) if example.trained else 0.0 for example in examples]
    assert [loss.total for loss in found] == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_no_examples_no_losses_and_the_mode_as_before(model):
    model.train()
    assert row_losses(model, choose_loss(model)[0], []) == []
    assert model.training
    model.eval()
