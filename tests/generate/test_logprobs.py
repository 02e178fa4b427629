"""Proves that logprobs are the model's own, whatever the sampling, the company and the way of decoding; and nobody pays unasked."""

from typing import Any

import pytest
import torch
from tests.generate.families import adapted

from tunesmith.generate.cached import CachedRows
from tunesmith.generate.decoder import Decoder
from tunesmith.generate.logprobs import LOWEST, Chosen, chosen_logprobs
from tunesmith.generate.sampling import Sampling

PROMPT, OTHER = [1, 5, 6, 7, 30, 31], [1, 5, 6, 7, 8, 40, 41, 42, 43]
WAYS = {"store": {}, "model's cache": {"plain": True}, "base": {"base": True}}
SAMPLED = Sampling(10, temperature=1.7, top_p=0.9, top_k=40, seed=4)


@pytest.fixture(scope="module")
def model() -> Any:
    return adapted("llama", lean=True)


def decoded(decoder: Decoder, key: int) -> tuple[list[int], list[Chosen]]:
    """All tokens of an answer, and what is told of them."""
    tokens, told = [], []
    while decoder.living:
        new = decoder.step()
        assert decoder.logprobs.keys() <= new.keys()
        if key in new:
            tokens.append(new[key])
            told.append(decoder.logprobs[key])
    return tokens, told


def by_transformers(model: Any, prompt: list[int], answer: list[int], base: bool) -> torch.Tensor:
    """Log softmax of transformers' own forward pass over prompt and answer, ``[answer, V]``."""
    ids = torch.tensor([prompt + answer])
    with torch.no_grad():
        if base:
            with model.disable_adapter():
                logits = model(input_ids=ids).logits
        else:
            logits = model(input_ids=ids).logits
    return logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)


@pytest.mark.parametrize("sampling", [Sampling(10), SAMPLED], ids=["greedy", "drawn"])
@pytest.mark.parametrize("way", WAYS)
def test_they_are_those_of_transformers_own_forward_pass(model: Any, way: str, sampling: Sampling) -> None:
    decoder = Decoder(model, [], 0, **WAYS[way])
    decoder.add(OTHER, Sampling(6))
    key = decoder.add(PROMPT, sampling, top_logprobs=5)
    tokens, told = decoded(decoder, key)
    expected = by_transformers(model, PROMPT, tokens, way == "base")
    assert [chosen.token for chosen in told] == tokens
    torch.testing.assert_close(
        torch.tensor([c.logprob for c in told]), expected.gather(1, torch.tensor(tokens)[:, None])[:, 0], atol=1e-4, rtol=0
    )
    values, ids = expected.topk(5)
    assert [[top.token for top in c.top] for c in told] == ids.tolist()
    torch.testing.assert_close(torch.tensor([[top.logprob for top in c.top] for c in told]), values, atol=1e-4, rtol=0)


def test_steps_over_static_buffers_which_a_gpu_captures_tell_the_same(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(static: bool) -> list[Chosen]:
        def take(model: Any, shape: Any, slots: int, base: bool) -> CachedRows:
            return CachedRows(model, shape, slots, base, static=static)

        monkeypatch.setattr("tunesmith.generate.decoder.take_rows", take)
        decoder = Decoder(model, [], 0)
        return decoded(decoder, decoder.add(PROMPT, Sampling(6), top_logprobs=2))[1]

    for static, growing in zip(told(True), told(False), strict=True):
        assert static.token == growing.token
        assert static.logprob == pytest.approx(growing.logprob, abs=1e-4)


def test_only_those_who_ask_are_told_and_only_as_many_as_they_ask_for(model: Any) -> None:
    decoder = Decoder(model, [], 0)
    silent, bare, full = (decoder.add(PROMPT, Sampling(3), top) for top in (None, 0, 3))
    decoder.step()
    assert set(decoder.logprobs) == {bare, full}
    assert (len(decoder.logprobs[bare].top), len(decoder.logprobs[full].top)) == (0, 3)
    assert decoder.logprobs[bare].logprob == decoder.logprobs[full].logprob == decoder.logprobs[full].top[0].logprob
    for key in (bare, full):
        decoder.drop(key)
    assert list(decoder.step()) == [silent]
    assert decoder.logprobs == {}


def test_unless_it_is_asked_for_nothing_is_computed(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*given: Any) -> Any:
        raise AssertionError("logprobs that nobody asked for")

    monkeypatch.setattr("tunesmith.generate.decoder.chosen_logprobs", never)
    Decoder(model, [], 0).answer([PROMPT, OTHER], Sampling(4))


def test_they_are_computed_in_fp32_and_what_cannot_come_has_a_number_too() -> None:
    logits = torch.tensor([[1.0, 2.0, -torch.inf]], dtype=torch.bfloat16)
    (chosen,) = chosen_logprobs(logits, [2], [20])
    exact = torch.tensor([1.0, 2.0]).log_softmax(-1)
    assert chosen.logprob == LOWEST
    assert [top.token for top in chosen.top] == [1, 0, 2]
    assert [top.logprob for top in chosen.top] == pytest.approx([*exact.flip(0).tolist(), LOWEST], abs=1e-6)


def test_the_answers_of_a_seed_are_each_other_ones_and_no_neighbour_seeds() -> None:
    seeds = {Sampling(seed=seed).nth(number).seed for seed in range(20) for number in range(16)}
    assert len(seeds) == 20 * 16
    assert Sampling(seed=7).nth(0) == Sampling(seed=7)
    assert Sampling(seed=7).nth(3) == Sampling(seed=7).nth(3)
    assert Sampling().nth(3).seed is None
