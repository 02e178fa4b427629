"""Proves on a GPU that captured decoding gives what the model's own cache gives: several lengths, with the adapter and without,
answers that come and go, buffers that grow, and an adapter that changes in between."""

from typing import Any

import pytest
import torch
from tests.generate.families import FAMILIES, adapted

from tunesmith.generate.cached import CachedRows
from tunesmith.generate.decoder import Decoder
from tunesmith.generate.engine import generate
from tunesmith.generate.fit import store_shape
from tunesmith.generate.sampling import Sampling

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

PROMPTS = [[1, 40, 41, 42, 43, 50], [1, 40, 41, 42, 43, *range(60, 90)], [1, 77], [1, 40, 41, 42, 43, 7, 8], [1, *range(9, 40)]]
GREEDY = Sampling(max_new_tokens=24)


def on_gpu(family: str, lean: bool = True) -> Any:
    return adapted(family, lean, device="cuda")


def plain(model: Any, prompts: list[list[int]] = PROMPTS, sampling: Sampling = GREEDY, base: bool = False) -> list[list[int]]:
    return Decoder(model, [], 0, slots=len(prompts), base=base, plain=True).answer(prompts, sampling)


@pytest.mark.parametrize("lean", [True, False], ids=["lean", "peft"])
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_the_models_own_cache(family: str, lean: bool) -> None:
    model = on_gpu(family, lean)
    assert not isinstance(store_shape(model), str), store_shape(model)
    assert generate(model, PROMPTS, [], 0, GREEDY) == plain(model)
    assert generate(model, PROMPTS, [], 0, GREEDY, base=True) == plain(model, base=True) != plain(model)
    assert generate(model, PROMPTS, [], 0, GREEDY) == plain(model)


@pytest.mark.parametrize("base", [False, True], ids=["tuned", "base"])
def test_a_step_is_captured_and_computes_what_eager_steps_do(base: bool) -> None:
    model = on_gpu("llama")
    shape = store_shape(model)
    assert not isinstance(shape, str)
    captured, eager = (CachedRows(model, shape, 8, base, static=static) for static in (None, False))
    prompts = [*PROMPTS, list(range(3, 125))]  # it passes 128 tokens: the store grows, and steps are captured anew
    with torch.no_grad():
        torch.testing.assert_close(captured.begin(prompts), eager.begin(prompts), rtol=1e-3, atol=1e-3)
        for turn in range(12):
            tokens = [30 + turn + k for k in range(len(captured.lengths))]
            torch.testing.assert_close(captured.step(tokens), eager.step(tokens), rtol=1e-3, atol=1e-3)
            if turn in (3, 5):
                captured.leave(turn - 3)
                eager.leave(turn - 3)
    assert captured.store.length == 256
    assert [(step.eager_reason, step.graph is not None) for step in captured.steps] == [(None, True)]


def test_answers_that_come_and_go_are_as_alone() -> None:
    model = on_gpu("llama")
    expected = [plain(model, [prompt])[0] for prompt in PROMPTS]
    decoder = Decoder(model, [], 0, slots=3)
    answers: dict[int, list[int]] = {}
    for prompt in PROMPTS[:3]:
        answers[decoder.add(prompt, GREEDY)] = []
    for turn in range(200):
        if turn == 4:
            decoder.drop(1)
        if turn in (5, 9):
            answers[decoder.add(PROMPTS[3 if turn == 5 else 4], GREEDY)] = []
        for key, token in decoder.step().items():
            answers[key].append(token)
    assert not decoder.living
    assert answers.pop(1) == expected.pop(1)[:4]
    assert list(answers.values()) == expected


def test_captured_steps_are_used_again_and_read_the_adapter_as_it_is_then() -> None:
    model = on_gpu("llama")
    before = generate(model, PROMPTS, [], 0, GREEDY)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.mul_(-3)
    decoder = Decoder(model, [], 0, slots=len(PROMPTS))
    answers: dict[int, list[int]] = {decoder.add(prompt, GREEDY): [] for prompt in PROMPTS}
    for token in decoder.step().items():
        answers[token[0]].append(token[1])
    assert isinstance(decoder.backend, CachedRows)
    assert any(step.graph is not None for step in decoder.backend.steps), "nothing captured was kept"
    while decoder.living:
        for key, token in decoder.step().items():
            answers[key].append(token)
    assert list(answers.values()) == plain(model) != before


def test_what_is_drawn_depends_on_the_seed_alone() -> None:
    model = on_gpu("llama")
    sampling = Sampling(16, temperature=1.2, top_p=0.9, top_k=40, seed=7)
    together = generate(model, PROMPTS, [], 0, sampling)
    assert [generate(model, [prompt], [], 0, sampling)[0] for prompt in PROMPTS] == together == plain(model, sampling=sampling)


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "on the fly"])
def test_a_4_bit_base_is_decoded_as_by_its_own_cache(keep: bool) -> None:
    model = adapted("llama", lean=True, device="cuda", four_bit=True, keep=keep)
    assert not isinstance(store_shape(model), str), store_shape(model)
    assert generate(model, PROMPTS, [], 0, GREEDY) == plain(model)
    assert generate(model, PROMPTS, [], 0, GREEDY, base=True) == plain(model, base=True)
