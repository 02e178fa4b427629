"""Several answers to one request, and what the model thought of their tokens."""

import asyncio
import json
import tracemalloc
from typing import Any

import pytest
import torch
from tests.export.tiny_bases import sentencepiece
from tests.serve.conftest import CHAT, question

from tunesmith.generate.logprobs import Chosen, Logprob
from tunesmith.generate.sampling import Sampling
from tunesmith.serve.answer import Ask
from tunesmith.serve.limits import Limits
from tunesmith.serve.logprobs import TokenTexts
from tunesmith.serve.reply import ChatReply
from tunesmith.serve.service import Service, Talk

DRAWN = {"temperature": 1.5, "seed": 7, "max_tokens": 16}


@pytest.fixture
def live(serve: Any, endless: Any) -> Any:
    with serve(endless) as live:
        yield live


def ask(client: Any, **fields: Any) -> Any:
    return client.chat.completions.create(model="tuned", messages=[{"role": "user", "content": "The wind"}], **fields)


def texts(completion: Any) -> list[str]:
    return [choice.message.content for choice in completion.choices]


# ---- several answers


def test_several_answers_of_a_seed_differ_and_come_again_and_the_first_is_that_of_the_seed_alone(client):
    got = ask(client, n=4, **DRAWN)
    assert [choice.index for choice in got.choices] == [0, 1, 2, 3]
    assert len(set(texts(got))) == 4
    assert texts(ask(client, n=4, **DRAWN)) == texts(got)
    assert texts(ask(client, **DRAWN)) == texts(got)[:1]
    assert texts(ask(client, n=2, **DRAWN)) == texts(got)[:2]


def test_without_a_seed_they_differ_too(client):
    assert len(set(texts(ask(client, n=4, temperature=1.5, max_tokens=16)))) > 1


def test_the_prompt_is_counted_once_and_all_answers_are(live, client):
    one, four = ask(client, **DRAWN).usage, ask(client, n=4, **DRAWN).usage
    assert four.prompt_tokens == one.prompt_tokens
    assert four.completion_tokens == 4 * 16
    assert four.total_tokens == four.prompt_tokens + four.completion_tokens
    metrics = live.service.metrics
    assert metrics.answers == {("tuned", "length"): 5}
    assert metrics.prompt_tokens["tuned"] == 2 * one.prompt_tokens
    assert metrics.answer_tokens["tuned"] == 5 * 16


def test_a_stream_of_several_adds_up_to_each_of_them(client):
    whole = ask(client, n=3, **DRAWN)
    got, ends, roles, last = ["", "", ""], ["", "", ""], 0, None
    for chunk in ask(client, n=3, stream=True, stream_options={"include_usage": True}, **DRAWN):
        for choice in chunk.choices:
            assert not ends[choice.index], "an answer that has ended goes on"
            got[choice.index] += choice.delta.content or ""
            ends[choice.index] = choice.finish_reason or ""
            roles += choice.delta.role == "assistant"
        last = chunk
    assert got == texts(whole)
    assert ends == ["length"] * 3
    assert roles == 3
    assert last.usage == whole.usage


def test_each_of_several_has_its_own_stop(client):
    whole = texts(ask(client, n=4, **DRAWN))
    stop = whole[2][4:7]
    cut = ask(client, n=4, stop=stop, **DRAWN)
    assert texts(cut) == [text.split(stop)[0] for text in whole]
    ends = ["stop" if stop in text else "length" for text in whole]
    assert [choice.finish_reason for choice in cut.choices] == ends
    assert set(ends) == {"stop", "length"}, "nothing is shown unless some go on"


def test_more_answers_than_places_wait_for_one_and_come(serve, endless):
    with serve(endless, Limits(slots=2, queue=0)) as live, live.client() as client:
        got = live.chat(client, n=5, **DRAWN).json()
        assert len({choice["message"]["content"] for choice in got["choices"]}) == 5
        assert live.service.open == 0


def test_they_take_as_many_places_as_they_are(serve, endless):
    with serve(endless, Limits(slots=1, queue=3)) as live, live.client() as client:
        with client.stream("POST", CHAT, json=question(max_tokens=200, stream=True, n=3, temperature=1.0)) as first:
            assert first.status_code == 200
            assert live.service.open == 3
            refused = live.chat(client, n=2, temperature=1.0)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "busy")
        while live.service.open or live.service.worker.living:
            client.get("/health")
        assert sum(live.service.metrics.answers.values()) == 3
        assert live.chat(client).status_code == 200


def begun(session: Any, ask: Ask, answers: int) -> Talk:
    """Answers that nobody grows unless the test does."""
    service = Service(session, "tuned", "base")
    service.worker.over = None
    talk = Talk(service, "tuned", 1, answers)
    talk.begin([ask])
    return talk


def test_an_answer_that_has_ended_is_counted_and_gives_its_place_back_while_others_go_on(session):
    async def watch() -> None:
        talk = begun(session, Ask([1, 2], Sampling(temperature=1.0)), 3)
        service, pieces = talk.service, talk.pieces()
        talk.answers[1].grow(5, last=True)
        assert (await anext(pieces)).finish == "length"
        assert (service.open, service.metrics.answers) == (2, {("tuned", "length"): 1})
        for _ in range(2):
            talk.close()
            assert (service.open, service.metrics.answers) == (0, {("tuned", "length"): 1, ("tuned", "left"): 2})
        talk.answers[0].grow(5, last=True)  # as the worker does that has not seen it yet
        assert (await anext(pieces)).finish == "length"
        assert (service.open, sum(service.metrics.answers.values())) == (0, 3)
        assert [answer.gone for answer in talk.answers] == [True] * 3

    asyncio.run(watch())


def test_a_prompt_is_computed_once_for_all_its_answers(live, endless):
    seen = []
    held = endless.model.get_input_embeddings().register_forward_pre_hook(lambda module, given: seen.append(given[0].numel()))
    with live.client() as client:
        prompt = live.chat(client, "wind " * 30, n=8, **DRAWN).json()["usage"]["prompt_tokens"]
    held.remove()
    assert prompt <= max(seen) < 2 * prompt


# ---- logprobs


def test_logprobs_are_the_models_own_and_their_bytes_are_the_answer(client, endless):
    got = ask(client, logprobs=True, top_logprobs=20, **DRAWN).choices[0]
    content = got.logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in content).decode(errors="replace") == got.message.content
    prompt = endless.renderer.prompt_ids([{"role": "user", "content": "The wind"}])
    tokens = list(endless.tokens(prompt, Sampling(16, temperature=1.5, seed=7)))
    with torch.no_grad():
        logits = endless.model(input_ids=torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    logs = logits.float().log_softmax(-1)
    expected = logs.gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()
    assert [entry.logprob for entry in content] == pytest.approx(expected, abs=1e-4)
    for entry, values in zip(content, logs.topk(20).values.tolist(), strict=True):
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx(values, abs=1e-4)


def test_a_stream_tells_the_same_logprobs_with_the_text_they_are_of(client):
    fields = {"logprobs": True, "top_logprobs": 2, "n": 2, **DRAWN}
    whole = ask(client, **fields)
    told, texts_ = [[], []], ["", ""]
    for chunk in ask(client, stream=True, **fields):
        choice = chunk.choices[0]
        texts_[choice.index] += choice.delta.content or ""
        if choice.logprobs is not None:
            told[choice.index] += choice.logprobs.content
            given = b"".join(bytes(entry.bytes) for entry in told[choice.index])
            assert given.decode(errors="replace").startswith(texts_[choice.index])
    assert told == [choice.logprobs.content for choice in whole.choices]
    assert all(told)


def test_without_asking_there_are_none_and_without_top_none_beside(client):
    assert ask(client, **DRAWN).choices[0].logprobs is None
    assert ask(client, logprobs=False, top_logprobs=0, **DRAWN).choices[0].logprobs is None
    content = ask(client, logprobs=True, **DRAWN).choices[0].logprobs.content
    assert len(content) == 16
    assert {len(entry.top_logprobs) for entry in content} == {0}


def test_what_is_cut_off_by_a_stop_text_is_not_told(client):
    whole = ask(client, logprobs=True, **DRAWN).choices[0]
    start = len(whole.message.content) // 2
    stop = whole.message.content[start : start + 4]
    cut = ask(client, logprobs=True, stop=stop, **DRAWN).choices[0]
    assert cut.message.content == whole.message.content[: whole.message.content.index(stop)]
    told = b"".join(bytes(entry.bytes) for entry in cut.logprobs.content).decode(errors="replace")
    assert told.startswith(cut.message.content)
    assert stop not in told
    assert cut.logprobs.content == whole.logprobs.content[: len(cut.logprobs.content)]


def test_the_token_that_ends_an_answer_is_not_told(serve, session):
    with serve(session) as live, live.client() as client:
        for seed in range(50):
            got = live.chat(client, temperature=1.9, seed=seed, max_tokens=100, logprobs=True).json()
            if got["choices"][0]["finish_reason"] == "stop":
                break
        choice, count = got["choices"][0], got["usage"]["completion_tokens"]
        assert choice["finish_reason"] == "stop"
        assert len(choice["logprobs"]["content"]) == count - 1
        assert "<|im_end|>" not in {entry["token"] for entry in choice["logprobs"]["content"]}


def test_many_logprobs_take_few_times_the_memory_of_their_json(session):
    likeliest = tuple(Logprob(token, -0.25 * token) for token in range(20))

    async def watch() -> tuple[int, int]:
        talk = begun(session, Ask([1, 2], Sampling(), top_logprobs=20), 1)
        talk.answers[0].grow(5, False, Chosen(5, -1.0, likeliest))  # whatever is made but once
        tracemalloc.start()
        for number in range(500):
            talk.answers[0].grow(5 + number % 50, number == 499, Chosen(5 + number % 50, -1.0, likeliest))
        body = await ChatReply(talk).whole()
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(body["choices"][0]["logprobs"]["content"]) == 501
        return most, len(json.dumps(body))

    most, written = asyncio.run(watch())
    assert most < 5 * written


# ---- the texts of tokens


def test_tokens_have_the_bytes_they_are_in_a_text_parts_of_characters_too(tiny_tokenizer):
    known = TokenTexts(tiny_tokenizer)
    text = "a wind🙂 é\n"
    ids = tiny_tokenizer(text, add_special_tokens=False)["input_ids"]
    told = [known.told(Chosen(token, -1.0)) for token in ids]
    assert b"".join(bytes(entry["bytes"]) for entry in told) == text.encode()
    end = known.told(Chosen(5, -0.5, (Logprob(2, -0.1),)))["top_logprobs"][0]
    assert (end["token"], end["logprob"], bytes(end["bytes"])) == ("<|im_end|>", -0.1, b"<|im_end|>")


def test_sentencepieces_spaces_and_bytes_are_told():
    tokenizer = sentencepiece()
    known = TokenTexts(tokenizer)
    ids = tokenizer("the 🙂 é", add_special_tokens=False)["input_ids"]
    told = [known.told(Chosen(token, -1.0)) for token in ids]
    assert b"".join(bytes(entry["bytes"]) for entry in told).strip() == "the 🙂 é".encode()
    assert any(entry["bytes"] == [0xF0] for entry in told)
