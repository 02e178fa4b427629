"""Proves that an answer is the same whatever comes, goes and waits beside it, over static buffers too; and what is left behind."""

import gc
import weakref
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.generate.families import adapted

from tunesmith.generate.cached import CachedRows
from tunesmith.generate.decoder import Decoder
from tunesmith.generate.engine import generate
from tunesmith.generate.fit import store_shape
from tunesmith.generate.sampling import Sampling

GREEDY = Sampling(max_new_tokens=12)


@pytest.fixture(scope="module")
def model() -> Any:
    return adapted("llama", lean=True)


@pytest.fixture(scope="module")
def alone(model: Any) -> Any:
    """The answer to a prompt that nothing stands beside, by the model's own cache."""
    known: dict[tuple[int, ...], list[int]] = {}

    def answer(prompt: list[int]) -> list[int]:
        if tuple(prompt) not in known:
            decoder = Decoder(model, [], 0, plain=True)
            decoder.add(prompt, GREEDY)
            known[tuple(prompt)] = [token for _ in range(12) for token in decoder.step().values()]
        return known[tuple(prompt)]

    return answer


def prompt_of(number: int) -> list[int]:
    """Of many lengths; some begin alike."""
    return [1, 5, 6, 7, 8, 9][: 2 + number % 5] + [20 + (7 * number + k) % 200 for k in range(1 + (11 * number) % 23)]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["add", "add", "step", "step", "step", "drop"]), min_size=5, max_size=40), st.integers(1, 5))
def test_whatever_comes_and_goes_an_answer_is_as_alone(model: Any, alone: Any, acts: list[str], slots: int) -> None:
    decoder = Decoder(model, [], 0, slots=slots)
    prompts: dict[int, list[int]] = {}
    got: dict[int, list[int]] = {}
    for number, act in enumerate([*acts, *["step"] * 300]):
        if act == "add":
            key = decoder.add(prompt_of(number), GREEDY)
            prompts[key], got[key] = prompt_of(number), []
        elif act == "drop" and decoder.living:
            decoder.drop(decoder.living[number % len(decoder.living)])
        else:
            tokens = decoder.step()
            assert len(tokens) <= slots
            for key, token in tokens.items():
                got[key].append(token)
    assert not decoder.living
    assert decoder.step() == {}
    for key, tokens in got.items():
        assert tokens == alone(prompts[key])[: len(tokens)]


@pytest.mark.parametrize("base", [False, True])
def test_static_buffers_give_what_growing_ones_do(model: Any, base: bool) -> None:
    """What a GPU captures, run kernel by kernel: spare rows, whole rows masked, rows that grow and move."""
    shape = store_shape(model)
    assert not isinstance(shape, str)
    static, growing = (CachedRows(model, shape, 8, base, static=kind) for kind in (True, False))
    prompts = [prompt_of(number) for number in range(5)] + [list(range(3, 125))]  # it passes 128 tokens, and the store doubles
    for rows in (static, growing):
        assert rows.begin(prompts).shape == (6, 260)
    for turn in range(10):
        tokens = [30 + turn + k for k in range(len(static.lengths))]
        torch.testing.assert_close(static.step(tokens), growing.step(tokens), rtol=1e-4, atol=1e-4)
        if turn in (3, 5):
            static.leave(turn - 3)
            growing.leave(turn - 3)
    assert (static.store.rows, static.store.length) == (8, 256)
    assert len(static.steps) == 1, "fewer rows go through the step of more"


def test_an_answer_that_waits_begins_when_a_slot_is_free(model: Any, alone: Any) -> None:
    decoder = Decoder(model, [], 0, slots=1)
    first, second = decoder.add(prompt_of(1), GREEDY), decoder.add(prompt_of(2), GREEDY)
    assert decoder.living == (first, second)
    seen = [decoder.step() for _ in range(24)]
    assert [list(tokens) for tokens in seen] == [[first]] * 12 + [[second]] * 12
    assert [tokens[second] for tokens in seen[12:]] == alone(prompt_of(2))


def test_one_that_waits_can_be_dropped_and_dropping_twice_is_nothing(model: Any) -> None:
    decoder = Decoder(model, [], 0, slots=1)
    first, second = decoder.add([1, 5], GREEDY), decoder.add([1, 6], GREEDY)
    decoder.step()
    for key in (second, second, first, 99):
        decoder.drop(key)
    assert decoder.living == ()
    assert decoder.step() == {}


def test_an_empty_prompt_is_refused_and_no_prompts_have_no_answers(model: Any) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        Decoder(model, [], 0).add([])
    assert generate(model, [], [], 0, GREEDY) == []


def test_a_prompt_longer_than_a_pass_and_one_of_a_single_token(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [list(range(3, 90)), [7], list(range(4, 60)), [7, 8]]
    whole = generate(model, prompts, [], 0, GREEDY)
    monkeypatch.setattr("tunesmith.generate.cached.TOGETHER", 64)
    assert generate(model, prompts, [], 0, GREEDY) == whole


def test_what_is_drawn_depends_on_the_seed_alone(model: Any) -> None:
    def drawn(prompts: list[list[int]], seed: int | None) -> list[list[int]]:
        return generate(model, prompts, [], 0, Sampling(12, temperature=1.5, top_p=0.95, top_k=50, seed=seed))

    prompts = [prompt_of(number) for number in range(6)]
    together = drawn(prompts, 3)
    assert [drawn([prompt], 3)[0] for prompt in prompts] == together
    assert drawn(prompts[::-1], 3)[::-1] == together
    assert drawn(prompts, 4) != together
    assert drawn([prompts[0]] * 4, 3) == [together[0]] * 4
    assert len({tuple(answer) for answer in drawn([prompts[0]] * 4, None)}) > 1


def test_rows_are_used_again_and_read_the_adapter_as_it_is_then() -> None:
    model = adapted("llama", lean=True)
    decoder = Decoder(model, [], 0)
    decoder.add(prompt_of(1), GREEDY)
    decoder.step()
    rows = decoder.backend
    while decoder.living:
        decoder.step()
    before = generate(model, [prompt_of(1)], [], 0, GREEDY)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.mul_(-3)
    after = Decoder(model, [], 0)
    after.add(prompt_of(1), GREEDY)
    changed = list(after.step().values())
    assert after.backend is rows
    changed += [token for _ in range(11) for token in after.step().values()]
    plain = Decoder(model, [], 0, plain=True)
    plain.add(prompt_of(1), GREEDY)
    assert changed == [token for _ in range(12) for token in plain.step().values()] != before[0]


def test_rows_that_are_kept_do_not_keep_the_model() -> None:
    model = adapted("llama", lean=True)
    generate(model, [[1, 5, 6]], [], 0, GREEDY)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_two_decoders_take_turns_on_one_model(model: Any, alone: Any) -> None:
    tuned, base = Decoder(model, [], 0), Decoder(model, [], 0, base=True)
    again = Decoder(model, [], 0)
    for decoder in (tuned, base, again):
        decoder.add(prompt_of(4), GREEDY)
    steps = [[next(iter(decoder.step().values())) for decoder in (tuned, base, again)] for _ in range(12)]
    mine, without, same = map(list, zip(*steps))
    assert mine == same == alone(prompt_of(4)) != without
