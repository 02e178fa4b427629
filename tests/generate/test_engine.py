"""Proves that a prompt's answer does not depend on its company, ends at its stop token, and is drawn as the seed says."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tunesmith.generate.engine import Sampling, generate

PROMPTS = [[1, 40, 41, 42], [1, 77], [1, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [1, 200, 201]]
STOP, PAD = 2, 0


@pytest.fixture(scope="module")
def model(tiny_model_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32).eval().requires_grad_(False)


def greedy_by_hand(model: Any, prompt: list[int], count: int) -> list[int]:
    """The likeliest continuation, one whole forward pass a token: no cache, no padding, no generate()."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_greedy_is_the_likeliest_token_each_time(model: Any) -> None:
    expected = greedy_by_hand(model, PROMPTS[0], 12)
    assert len(set(expected)) > 1, "the tiny model says one thing over and over, so nothing is compared"
    assert generate(model, [PROMPTS[0]], [299], PAD, Sampling(max_new_tokens=12)) == [expected]


def test_prompts_of_different_lengths_answered_together_are_answered_as_alone(model: Any) -> None:
    sampling = Sampling(max_new_tokens=16)
    together = generate(model, PROMPTS, [STOP], PAD, sampling)
    alone = [generate(model, [prompt], [STOP], PAD, sampling)[0] for prompt in PROMPTS]
    assert together == alone
    assert len({tuple(answer) for answer in together}) == len(PROMPTS)


def test_a_pad_id_that_a_prompt_contains_changes_nothing(model: Any) -> None:
    sampling = Sampling(max_new_tokens=8)
    assert generate(model, PROMPTS, [STOP], 40, sampling) == generate(model, PROMPTS, [STOP], PAD, sampling)


def test_an_answer_ends_with_its_stop_token(model: Any) -> None:
    whole = greedy_by_hand(model, PROMPTS[0], 12)
    stop = whole[5]
    first = whole.index(stop)
    assert generate(model, [PROMPTS[0]], [stop], PAD, Sampling(max_new_tokens=12)) == [whole[: first + 1]]


def test_any_of_several_stop_tokens_ends_it(model: Any) -> None:
    whole = greedy_by_hand(model, PROMPTS[0], 12)
    stops = [whole[7], whole[4]]
    end = min(whole.index(stop) for stop in stops)
    assert generate(model, [PROMPTS[0]], stops, PAD, Sampling(max_new_tokens=12)) == [whole[: end + 1]]


def test_one_that_stops_early_leaves_no_padding_behind_and_the_others_going(model: Any) -> None:
    answers = [greedy_by_hand(model, prompt, 12) for prompt in PROMPTS]
    stop = answers[1][2]
    expected = [answer[: answer.index(stop) + 1] if stop in answer else answer for answer in answers]
    assert generate(model, PROMPTS, [stop], PAD, Sampling(max_new_tokens=12)) == expected
    assert len({len(answer) for answer in expected}) > 1


def test_at_most_so_many_tokens(model: Any) -> None:
    assert [len(a) for a in generate(model, PROMPTS, [299], PAD, Sampling(max_new_tokens=3))] == [3] * 4


def drawn(model: Any, seed: int, **sampling: Any) -> list[list[int]]:
    torch.manual_seed(seed)
    return generate(model, PROMPTS, [STOP], PAD, Sampling(max_new_tokens=10, **sampling))


def test_the_seed_decides_what_is_sampled(model: Any) -> None:
    assert drawn(model, 1, temperature=1.0) == drawn(model, 1, temperature=1.0)
    assert drawn(model, 1, temperature=1.0) != drawn(model, 2, temperature=1.0)


@pytest.mark.parametrize("sampling", [{"temperature": 1.0, "top_k": 1}, {"temperature": 1.0, "top_p": 1e-6}, {"temperature": 1e-4}])
def test_sampling_from_one_token_only_is_greedy(model: Any, sampling: dict[str, Any]) -> None:
    assert drawn(model, 1, **sampling) == drawn(model, 2) == generate(model, PROMPTS, [STOP], PAD, Sampling(max_new_tokens=10))


def test_greedy_draws_nothing(model: Any) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    generate(model, PROMPTS, [STOP], PAD, Sampling(max_new_tokens=4))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_models_own_sampling_settings_do_not_leak_in(model: Any) -> None:
    before = model.generation_config
    changed = type(before)(**{**before.to_dict(), "do_sample": True, "temperature": 2.0, "top_k": 3, "top_p": 0.5})
    expected = generate(model, PROMPTS, [STOP], PAD, Sampling(max_new_tokens=8))
    model.generation_config = changed
    try:
        assert generate(model, PROMPTS, [STOP], PAD, Sampling(max_new_tokens=8)) == expected
    finally:
        model.generation_config = before


@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_is_as_before(model: Any, training: bool) -> None:
    model.train(training)
    generate(model, PROMPTS[:1], [STOP], PAD, Sampling(max_new_tokens=2))
    assert model.training is training
    model.eval()
