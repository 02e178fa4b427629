"""Proves that every built-in template keeps what it wrote when the conversation grows, and ends answers so that they are learnt."""

import copy
from typing import Any

import pytest

from tunesmith.base.templates import TEMPLATES
from tunesmith.base.tokenizer import load_tokenizer
from tunesmith.data.formats import Conversation, Message
from tunesmith.data.render import IGNORE, Renderer, render_text
from tunesmith.errors import ModelError

TALK = [
    {"role": "user", "content": "The wind is cold."},
    {"role": "assistant", "content": "Cold, the wind is."},
    {"role": "user", "content": "You will learn."},
    {"role": "assistant", "content": "Learn, you will."},
]
CONTROLS = ["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<end_of_turn>", "<start_of_turn>", "<|end|>", "<|user|>"]
SYSTEM = sorted(set(TEMPLATES) - {"gemma", "mistral"})


def with_template(tokenizer: Any, name: str) -> Any:
    """The tokenizer with a built-in template and the control tokens its family has."""
    chosen = copy.deepcopy(tokenizer)
    chosen.add_special_tokens({"additional_special_tokens": CONTROLS})
    chosen.chat_template = TEMPLATES[name]
    return chosen


@pytest.mark.parametrize("name", TEMPLATES)
def test_it_renders_two_turns_with_every_message_once_in_order(tiny_tokenizer: Any, name: str) -> None:
    text = render_text(with_template(tiny_tokenizer, name), TALK, False)
    places = [text.index(message["content"]) for message in TALK]
    assert places == sorted(places)
    assert all(text.count(message["content"]) == 1 for message in TALK)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_growing_conversation_keeps_the_prompt_it_had(tiny_tokenizer: Any, name: str) -> None:
    tokenizer = with_template(tiny_tokenizer, name)
    for turn in (1, 3):
        prompt = render_text(tokenizer, TALK[:turn], True)
        answered = render_text(tokenizer, TALK[: turn + 1], False)
        assert answered.startswith(prompt)
        assert answered[len(prompt) :].lstrip().startswith(TALK[turn]["content"])


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_second_turn_keeps_the_first_but_for_an_eos_that_closed_it(tiny_tokenizer: Any, name: str) -> None:
    tokenizer = with_template(tiny_tokenizer, name)
    first = render_text(tokenizer, TALK[:2], False)
    kept = first.removesuffix(tokenizer.eos_token) if name == "phi3" else first
    assert render_text(tokenizer, TALK[:3], True).startswith(kept)


@pytest.mark.parametrize("name", TEMPLATES)
def test_both_answers_and_their_stop_tokens_are_trained_and_nothing_else(tiny_tokenizer: Any, name: str) -> None:
    tokenizer = with_template(tiny_tokenizer, name)
    renderer = Renderer(tokenizer)
    example = renderer.example(Conversation(tuple(Message(**message) for message in TALK), "row 1"))
    trained = [label for label in example.labels if label != IGNORE]
    assert trained.count(renderer.stop_token_id) == 2
    assert trained[-1] == renderer.stop_token_id
    words = tokenizer.decode([token for token in trained if token != renderer.stop_token_id])
    assert words.replace(" ", "") == "Cold,thewindis.Learn,youwill."


@pytest.mark.parametrize("name", TEMPLATES)
def test_there_is_at_most_one_bos(tiny_tokenizer: Any, name: str) -> None:
    tokenizer = with_template(tiny_tokenizer, name)
    tokenizer.bos_token = "<|endoftext|>"
    assert render_text(tokenizer, TALK, False).count("<|endoftext|>") == (1 if "bos_token" in TEMPLATES[name] else 0)


@pytest.mark.parametrize("name", SYSTEM)
def test_a_system_message_comes_first_where_the_family_knows_one(tiny_tokenizer: Any, name: str) -> None:
    talk = [{"role": "system", "content": "Speak like Yoda."}, *TALK]
    text = render_text(with_template(tiny_tokenizer, name), talk, False)
    assert text.index("Speak like Yoda.") < text.index(TALK[0]["content"])


@pytest.mark.parametrize("name", ["gemma", "mistral"])
def test_a_system_message_is_refused_where_the_family_knows_none(tiny_tokenizer: Any, name: str) -> None:
    talk = [{"role": "system", "content": "Speak like Yoda."}, *TALK]
    with pytest.raises(ModelError, match="refuses a conversation of system → user"):
        render_text(with_template(tiny_tokenizer, name), talk, False)


@pytest.mark.parametrize(("name", "role"), [("gemma", "system"), ("mistral", "system"), ("mistral", "tool"), ("alpaca", "tool")])
def test_a_later_message_of_a_role_that_the_family_does_not_know_is_refused(tiny_tokenizer: Any, name: str, role: str) -> None:
    talk = [*TALK[:2], {"role": role, "content": "It is night."}, *TALK[2:]]
    with pytest.raises(ModelError, match=f"refuses a conversation of user → assistant → {role}"):
        render_text(with_template(tiny_tokenizer, name), talk, False)


@pytest.mark.parametrize("name", ["llama3", "phi3", "gemma"])
def test_a_template_whose_stop_token_the_vocabulary_lacks_is_refused(tiny_tokenizer: Any, name: str) -> None:
    bare = copy.deepcopy(tiny_tokenizer)
    bare.chat_template = TEMPLATES[name]
    with pytest.raises(ModelError, match="The chat template ends an answer with '<"):
        Renderer(bare)


def test_every_template_can_be_chosen(tiny_model_folder: Any) -> None:
    from tunesmith.base.catalog import resolve

    for name, text in TEMPLATES.items():
        assert load_tokenizer(resolve(str(tiny_model_folder)), name).chat_template == text
