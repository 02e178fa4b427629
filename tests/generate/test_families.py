"""Proves that answers decoded together over a static store are those that a model gives one by one with its own cache, family by
family; and that where the store does not fit, the reason is kept and the model's own way taken."""

from typing import Any

import pytest
import torch
from tests.generate.families import FAMILIES, PLAIN, adapted
from transformers import AutoModelForCausalLM

from tunesmith.generate.decoder import Decoder
from tunesmith.generate.fit import store_shape
from tunesmith.generate.sampling import Sampling

PROMPTS = [[1, 40, 41, 42, 43, 44, 50], [1, 40, 41, 42, 43, 77], [1, 40, 41, 42, 43, *range(100, 119)], [1, 40, 41, 42, 43, 200]]
TOKENS = 14


def answers(model: Any, plain: bool = False, base: bool = False, prompts: list[list[int]] = PROMPTS) -> list[list[int]]:
    return Decoder(model, [], 0, slots=len(prompts), base=base, plain=plain).answer(prompts, Sampling(max_new_tokens=TOKENS))


@pytest.mark.parametrize(
    ("family", "lean"), [*((family, True) for family in FAMILIES), ("llama", False), ("gemma2", False), ("phi3", False)]
)
def test_answers_together_are_those_of_one_by_one(family: str, lean: bool) -> None:
    model = adapted(family, lean)
    assert not isinstance(store_shape(model), str), store_shape(model)
    plain = answers(model, plain=True)
    assert answers(model) == plain
    without = answers(model, plain=True, base=True)
    assert answers(model, base=True) == without != plain
    assert answers(model) == plain, "leaving the adapter out once leaves it out for good"


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "phi3"])
def test_the_models_own_cache_gives_what_whole_forward_passes_give(family: str) -> None:
    model, ids = adapted(family, lean=False), list(PROMPTS[2])
    for _ in range(TOKENS):
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    assert answers(model, plain=True, prompts=[PROMPTS[2]]) == [ids[len(PROMPTS[2]) :]]


@pytest.mark.parametrize(("family", "reason"), PLAIN.items())
def test_where_the_store_does_not_fit_the_reason_is_kept(family: str, reason: str) -> None:
    model = adapted(family, lean=False)
    decoder = Decoder(model, [], 0)
    assert decoder.plain_reason is not None
    assert reason in decoder.plain_reason
    assert answers(model) == answers(model, plain=True)


def test_a_model_without_an_adapter_is_decoded_too(tiny_model_folder: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32).eval()
    assert answers(model) == answers(model, plain=True) == answers(model, base=True)
