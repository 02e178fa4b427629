"""Proves that vocabularies of every make give the tokens that `apply_chat_template` gives, whatever stands in a row."""

from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.base.templates import TEMPLATES
from tunesmith.data.batch_render import BatchRenderer
from tunesmith.data.conversation import Conversation, Message
from tunesmith.data.dataset import prepare
from tunesmith.data.render import IGNORE, Renderer
from tunesmith.recipe import Recipe

CONTROLS = ("<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>", "<|im_start|>", "<|im_end|>")
CLOSE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
    "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
TRIMMED = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content | trim + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
SHAPES = {
    "chatml": (TEMPLATES["chatml"], "<|im_end|>"),
    "mistral": (TEMPLATES["mistral"], "</s>"),
    "no spaces": (CLOSE, "</s>"),
    "phi3": (TEMPLATES["phi3"], "<|end|>"),
    "trimmed": (TRIMMED, "<|end|>"),
}
ODD = [
    "", " ", "\n", "The Force", "  river \n\n", "\n\n\n", "\nlives", "☕ é", "e\u0301", "שלום עולם", "\u202eabc\u200b", "x" * 400,
    "a\r\nb", "\t", "\x1b[2J\x07", "▁a", "<0x41>", "[INST]", "[/INST] x", "<|", "end|>", "</", "日本語", "{{ bos_token }}", "fi ①",
]  # fmt: skip
content = st.lists(st.sampled_from(ODD), min_size=1, max_size=3).map("".join).filter(lambda text: "<|end|>" not in text)
typing = st.lists(st.sampled_from([*ODD[:9], *CONTROLS]), min_size=1, max_size=4).map("".join)
every_kind = pytest.mark.parametrize("kind", ["byte-level", "unigram", "prepend", "replace"])
every_shape = pytest.mark.parametrize("shape", SHAPES)
property_of = settings(max_examples=15, deadline=None)


def talk(contents: list[str]) -> Conversation:
    return Conversation(tuple(Message(role, text) for role, text in zip(("user", "assistant") * 3, contents)), "line 1")


def talks(text: st.SearchStrategy[str]) -> st.SearchStrategy[list[str]]:
    return st.sampled_from([2, 4]).flatmap(lambda count: st.lists(text, min_size=count, max_size=count))


@every_kind
@every_shape
@property_of
@given(drawn=talks(content))
def test_ids_are_those_of_apply_chat_template_unless_a_token_of_it_straddles_a_prompts_end(vocabulary_like, kind, shape, drawn):
    tokenizer = vocabulary_like(kind, CONTROLS, SHAPES[shape][0])
    messages = talk(drawn).as_dicts()

    def theirs(upto: int, prompt: bool) -> list[int]:
        made = tokenizer.apply_chat_template(messages[:upto], add_generation_prompt=prompt, return_dict=True)
        return made["input_ids"]

    whole, prompts = theirs(len(messages), False), [theirs(i, True) for i in range(1, len(messages), 2)]
    example = Renderer(tokenizer).example(talk(drawn))
    assert example.input_ids[: len(prompts[0])] == prompts[0]
    if all(whole[: len(prompt)] == prompt for prompt in prompts):
        assert example.input_ids == whole
        assert all(example.labels[len(prompt) - 1] == IGNORE != example.labels[len(prompt)] for prompt in prompts)


@pytest.mark.parametrize("kind", ["byte-level", "prepend", "replace"])  # the unigram one cannot spell control tokens
@every_shape
@property_of
@given(drawn=talks(typing))
def test_each_answer_is_trained_with_one_stop_token_and_many_rows_at_once_give_the_same(vocabulary_like, kind, shape, drawn):
    template, stop = SHAPES[shape]
    renderer = Renderer(vocabulary_like(kind, CONTROLS, template))
    (example,) = made = renderer.examples([talk(drawn)])
    spelled = renderer.tokenizer.convert_ids_to_tokens(example.input_ids)
    runs = [[token for token, _ in run] for trained, run in groupby(zip(spelled, example.labels), _is_trained) if trained]
    assert [run[-1] for run in runs] == [stop] * (len(drawn) // 2)
    assert [sum(token in CONTROLS for token in run) for run in runs] == [1] * (len(drawn) // 2)
    assert BatchRenderer.like(renderer).examples([talk(drawn)] * 3) == made * 3


def _is_trained(token: tuple[str, int]) -> bool:
    return token[1] != IGNORE


@every_kind
def test_an_answer_that_melts_into_its_prompt_gets_no_space_before_it(vocabulary_like, kind):
    tokenizer = vocabulary_like(kind, CONTROLS, TEMPLATES["chatml"])
    assert len(tokenizer("x\n\n", add_special_tokens=False)["input_ids"]) < len(
        tokenizer("x\n", add_special_tokens=False)["input_ids"] + tokenizer("\n", add_special_tokens=False)["input_ids"]
    ), "the vocabulary has no token that could straddle"
    example = Renderer(tokenizer).example(talk(["x", "\nriver"]))
    answer = [token for token, label in zip(tokenizer.convert_ids_to_tokens(example.input_ids), example.labels) if label != IGNORE]
    assert answer[0] in ("\n", "Ċ")


def test_answers_with_characters_that_the_vocabulary_lacks_are_told(vocabulary_like, tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "☕", "completion": "a"}\n{"prompt": "a", "completion": "☕"}\n', encoding="utf-8")
    recipe = Recipe.of({"dataset_name": str(path)})
    notes = {
        kind: prepare(recipe, Renderer(vocabulary_like(kind, CONTROLS, TEMPLATES["chatml"])), 512).facts.notes
        for kind in ("unigram", "prepend")
    }
    assert notes["prepend"] == (), "bytes spell everything"
    (note,) = notes["unigram"]
    assert note == f"this vocabulary has no tokens for characters in 1 row ({path} line 2): <unk> is learnt for them"
