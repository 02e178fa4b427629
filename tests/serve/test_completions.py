"""/v1/completions: a text goes in as it is, and what the model goes on with comes out."""

import json
from typing import Any

import pytest
from tests.export.tiny_bases import sentencepiece
from tests.serve.test_guard import error, send

from tunesmith.data.conversation import Conversation, Message
from tunesmith.data.render import Renderer
from tunesmith.generate.engine import Sampling, generate
from tunesmith.serve.app import make_app
from tunesmith.serve.limits import Limits
from tunesmith.serve.prompts import Prompts
from tunesmith.serve.service import Service

PATH = "/v1/completions"
TEXTS = ["The wind is", "They walked across"]
DRAWN = {"temperature": 1.5, "seed": 7, "max_tokens": 12}


@pytest.fixture
def live(serve: Any, endless: Any) -> Any:
    with serve(endless) as live:
        yield live


@pytest.fixture
def app(session: Any) -> Any:
    return make_app(Service(session, "tuned", "base"))


def post(app: Any, body: Any) -> Any:
    return send(app, "POST", PATH, headers=[("content-type", "application/json")], body=json.dumps(body).encode())


def continued(session: Any, text: str, sampling: Sampling, base: bool = False) -> str:
    """By the engine, without a server."""
    tokenizer = session.renderer.tokenizer
    ids = tokenizer(text)["input_ids"]
    answer = generate(session.model, [ids], session.stop_ids, tokenizer.pad_token_id, sampling, base=base)[0]
    return tokenizer.decode(answer, skip_special_tokens=True)


def test_openais_client_gets_how_the_text_goes_on_with_the_adapter_and_without(client, endless):
    for name, base in (("tuned", False), ("base", True)):
        got = client.completions.create(model=name, prompt=TEXTS[0], max_tokens=12)
        assert got.object == "text_completion"
        assert got.choices[0].text == continued(endless, TEXTS[0], Sampling(12), base)
        assert got.choices[0].finish_reason == "length"
        assert got.usage.prompt_tokens == len(endless.renderer.tokenizer(TEXTS[0])["input_ids"])
        assert got.usage.completion_tokens == 12


def test_several_prompts_with_several_answers_each_come_in_order(client, endless):
    got = client.completions.create(model="tuned", prompt=TEXTS, n=2, **DRAWN)
    assert [choice.index for choice in got.choices] == [0, 1, 2, 3]
    sampling = Sampling(12, temperature=1.5, seed=7)
    expected = [continued(endless, text, sampling.nth(number)) for text in TEXTS for number in range(2)]
    assert [choice.text for choice in got.choices] == expected
    assert len(set(expected)) == 4
    assert got.usage.prompt_tokens == sum(len(endless.renderer.tokenizer(text)["input_ids"]) for text in TEXTS)


def test_a_stream_adds_up_to_the_same(client):
    whole = client.completions.create(model="tuned", prompt=TEXTS, **DRAWN)
    texts, ends = ["", ""], {}
    chunks = list(
        client.completions.create(model="tuned", prompt=TEXTS, stream=True, stream_options={"include_usage": True}, **DRAWN)
    )
    for chunk in chunks[:-1]:
        texts[chunk.choices[0].index] += chunk.choices[0].text
        if chunk.choices[0].finish_reason:
            ends[chunk.choices[0].index] = chunk.choices[0].finish_reason
    assert texts == [choice.text for choice in whole.choices]
    assert ends == {0: "length", 1: "length"}
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stop_text_ends_it_and_sixteen_tokens_are_usual(client):
    whole = client.completions.create(model="tuned", prompt=TEXTS[0])
    assert whole.usage.completion_tokens == 16
    stop = whole.choices[0].text[5:8]
    cut = client.completions.create(model="tuned", prompt=TEXTS[0], stop=[stop]).choices[0]
    assert cut.text == whole.choices[0].text.split(stop)[0]
    assert cut.finish_reason == "stop"


def test_fields_that_change_nothing_are_taken(live):
    nothing = {
        "n": 1, "best_of": 1, "echo": False, "suffix": None, "logprobs": None, "presence_penalty": 0, "logit_bias": {}, "user": 1,
    }  # fmt: skip
    with live.client() as client:
        plain, full = (client.post(PATH, json={"model": "tuned", "prompt": "a", **more}) for more in ({}, nothing))
    assert full.status_code == 200
    assert full.json()["choices"] == plain.json()["choices"]


# ---- the prompt's tokens


@pytest.fixture(scope="module")
def spaced() -> Any:
    """A tokenizer that begins with BOS."""
    return sentencepiece()


def trained(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a plain text in training, but for the stop token."""
    ids = Renderer(tokenizer).examples([Conversation((Message("document", text),), "row 1")])[0].input_ids
    assert ids[-1] == tokenizer.eos_token_id
    return ids[:-1]


@pytest.mark.parametrize("text", ["The wind", " a\n\n", "🙂 é", "typed</s> inside", "<s>[INST] formatted [/INST]"])
def test_a_prompt_has_the_tokens_that_it_has_in_training(spaced, text):
    assert Prompts(spaced, 10)._continued(text) == trained(spaced, text)


def test_a_prompt_is_as_its_tokenizer_writes_it_and_has_no_template_about_it(spaced, tiny_tokenizer):
    for tokenizer in (spaced, tiny_tokenizer):
        assert Prompts(tokenizer, 10)._continued("The wind") == tokenizer("The wind")["input_ids"]
    assert Prompts(spaced, 10)._continued("") == [spaced.bos_token_id]


def test_control_tokens_are_meant_where_a_prompt_begins_with_one_and_text_elsewhere(tiny_tokenizer):
    prompts, control = Prompts(tiny_tokenizer, 10), tiny_tokenizer.convert_tokens_to_ids("<|im_start|>")
    formatted = "<|im_start|>user\nThe wind<|im_end|>\n<|im_start|>assistant\n"
    assert prompts._continued(formatted) == tiny_tokenizer(formatted)["input_ids"]
    assert prompts._continued(formatted).count(control) == 2
    typed = prompts._continued(f"say {formatted}")
    assert control not in typed
    assert tiny_tokenizer.decode(typed) == f"say {formatted}"


# ---- what is refused


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"), ({"prompt": []}, "prompt"), ({"prompt": 5}, "prompt"), ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": [[1, 2]]}, "prompt"), ({"prompt": ["a", None]}, "prompt.1"), ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": ["a"] * 17}, "prompt"), ({"prompt": ""}, "prompt"), ({"prompt": "\ud800"}, "prompt"),
        ({"prompt": ["a", "\0"]}, "prompt"),
        ({"prompt": ["a"] * 9, "n": 2, "temperature": 1.0}, "n"), ({"n": 17, "temperature": 1.0}, "n"), ({"n": 2}, "n"),
        ({"echo": True}, "echo"), ({"echo": 1}, "echo"), ({"suffix": "b"}, "suffix"), ({"logprobs": 3}, "logprobs"),
        ({"logprobs": True}, "logprobs"), ({"best_of": 2}, "best_of"), ({"best_of": "2"}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"), ({"max_tokens": 10**400}, "max_tokens"), ({"max_tokens": 255}, "max_tokens"),
        ({"max_completion_tokens": 5}, "max_completion_tokens"), ({"messages": []}, "messages"), ({"tools": []}, "tools"),
        ({"response_format": {"type": "text"}}, "response_format"), ({"top_logprobs": 1}, "top_logprobs"),
        ({"logit_bias": {"5": 1}}, "logit_bias"), ({"presence_penalty": 1}, "presence_penalty"), ({"stop": ["a"] * 5}, "stop"),
        ({"stream_options": {"include_usage": True}}, "stream_options"), ({"model": 5}, "model"), ({"prompts": "a"}, "prompts"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_refused_by_name(app, fields, param):
    response = post(app, {"model": "tuned", "prompt": "The wind", **fields})
    told = error(response)
    assert response.status_code == 400, told
    assert param is None or told["param"] == param
    assert told["message"].isprintable()


@pytest.mark.parametrize(("fields", "told"), [
    ({"echo": True}, "Leave echo out."), ({"suffix": "b"}, "fills nothing in"), ({"logprobs": 3}, "/v1/chat/completions tells"),
    ({"best_of": 2}, "ask for n"), ({"prompt": ["a"] * 9, "n": 2, "temperature": 1.0}, "9 prompts with 2 answers each"),
    ({"n": 17, "temperature": 1.0}, "less than or equal to 16"), ({"prompts": "a"}, "did you mean prompt?"),
    ({"prompt": "wind " * 400}, "prompt is "), ({"prompt": "wind " * 400}, "256, its answer included. Shorten it."),
    ({"prompt": ["a", "wind " * 400]}, "prompt.1 is "), ({"prompt": ["a", ""]}, "prompt.1 is empty"),
    ({"prompt": ["a", "b\0"]}, "prompt.1 holds a NUL"), ({"prompt": [1, 2]}, "prompt: token ids are not taken"),
    ({"prompt": [[1], [2]]}, "prompt: token ids are not taken"),
])  # fmt: skip
def test_what_is_not_offered_is_refused_with_the_reason(app, fields, told):
    assert told in error(post(app, {"model": "tuned", "prompt": "The wind", **fields}))["message"]


def test_if_one_of_several_prompts_cannot_be_answered_none_is_begun(serve, endless):
    with serve(endless, Limits(slots=1)) as live, live.client() as client:
        got = client.post(PATH, json={"model": "tuned", "prompt": ["a", "wind " * 400]})
        assert got.status_code == 400
        assert (live.service.open, live.service.metrics.answers) == (0, {})
