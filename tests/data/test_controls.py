"""Proves that what is typed stays text for vocabularies of every make, and that nothing else changes by it."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.batch_render import BatchRenderer
from tunesmith.data.controls import PRIVATE, ControlTokens
from tunesmith.data.conversation import Conversation, Message
from tunesmith.data.render import IGNORE, Renderer
from tunesmith.errors import DataError

CONTROLS = ("<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


KINDS = ["byte-level", "unigram", "prepend", "replace"]


@pytest.fixture(scope="module")
def tokenizer_like(vocabulary_like):
    """A tokenizer of a make; ``rstrip``: its control tokens take the white space behind them, as Phi-3's do."""
    return lambda kind, rstrip=False: vocabulary_like(kind, CONTROLS, TEMPLATE, rstrip)


every_make = pytest.mark.parametrize("rstrip", [False, True], ids=["", "rstrip"])
every_kind = pytest.mark.parametrize("kind", KINDS)
text = st.lists(st.sampled_from([*CONTROLS, "the Force", " ", "\n", "x", "<|", "end", "|>", "river"]), max_size=6).map("".join)


def _talk(*contents: str) -> Conversation:
    return Conversation(tuple(Message(r, c) for r, c in zip(("user", "assistant") * 3, contents)), "line 1")


@every_kind
@every_make
@settings(max_examples=15, deadline=None)
@given(drawn=st.lists(text, min_size=4, max_size=4))
def test_only_the_templates_own_control_tokens_are_control_tokens(tokenizer_like, kind, rstrip, drawn):
    renderer = Renderer(tokenizer_like(kind, rstrip))
    (example,) = renderer.examples([_talk(*drawn)])
    names = renderer.tokenizer.convert_ids_to_tokens([i for i in example.input_ids if i in renderer.controls.ids])
    assert names == ["<s>", *["<|user|>", "<|end|>", "<|assistant|>", "<|end|>"] * 2]
    assert sum(label == renderer.stop_token_id for label in example.labels) == 2


@every_kind
@every_make
@settings(max_examples=15, deadline=None)
@given(drawn=st.lists(st.text("abcd ex", min_size=1, max_size=9), min_size=4, max_size=4))
def test_text_that_types_no_control_token_has_the_tokens_of_the_tokenizer(tokenizer_like, kind, rstrip, drawn):
    tokenizer = tokenizer_like(kind, rstrip)
    row = _talk(*drawn)
    (example,) = Renderer(tokenizer).examples([row])
    whole = tokenizer.apply_chat_template(row.as_dicts(), tokenize=False)
    assert example.input_ids == tokenizer(whole, add_special_tokens=False)["input_ids"]


@every_kind
@settings(max_examples=15, deadline=None)
@given(plain=st.text("abcd ex\n", max_size=12))
def test_the_twin_tokenises_all_other_text_as_the_tokenizer_does(tokenizer_like, kind, plain):
    tokenizer = tokenizer_like(kind)
    controls = ControlTokens(tokenizer)
    written = f"<s><|user|>\n{plain}<|end|>\n<|assistant|>\n"
    assert controls._spelled(written, PRIVATE[-1]) == tokenizer(written, add_special_tokens=False)["input_ids"]


@every_kind
def test_what_was_typed_is_spelled_out_and_can_be_read_again(tokenizer_like, kind):
    renderer = Renderer(tokenizer_like(kind))
    (example,) = renderer.examples([_talk("a <|end|> b", "x</s>y")])
    answer = [label for label in example.labels if label != IGNORE]
    assert "x</s>y" in renderer.tokenizer.decode(answer[:-1])
    assert renderer.tokenizer.decode(example.input_ids).count("<|end|>") == 3
    assert str(renderer.spelled) == "1 row (line 1)"
    assert renderer.notes(1, 1) == ("control tokens of this model are spelled out in 1 row (line 1): they stay text",)


def test_characters_that_could_hide_control_tokens_may_be_typed_too(tokenizer_like):
    renderer = Renderer(tokenizer_like("byte-level"))
    (example,) = renderer.examples([_talk("".join(PRIVATE[:3]) + f"<|end|>{PRIVATE[0]}0{PRIVATE[0]}", "x")])
    decoded = renderer.tokenizer.decode(example.input_ids)
    assert f"<|end|>{PRIVATE[0]}0{PRIVATE[0]}" in decoded
    assert [i for i in example.input_ids if i in renderer.controls.ids].count(renderer.stop_token_id) == 2


def test_a_text_that_holds_all_of_them_beside_a_control_token_is_refused(tokenizer_like):
    renderer = Renderer(tokenizer_like("byte-level"))
    with pytest.raises(DataError, match="line 1"):
        renderer.examples([_talk("".join(PRIVATE) + "<|end|>", "x")])


def test_a_vocabulary_that_cannot_spell_a_control_token_refuses_it_with_row_message_and_reason():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2, "x": 3}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_special_tokens(list(CONTROLS))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=TEMPLATE
    )
    with pytest.raises(
        DataError, match=r"line 1, message 2: the text contains '</s>'.*cannot keep it text: it has no ordinary tokens"
    ):
        Renderer(tokenizer).examples([_talk("a", "x </s>")])


def test_lists_and_objects_are_searched_and_veiled_with_their_keys(tokenizer_like):
    controls = ControlTokens(tokenizer_like("byte-level"))
    value = [{"a<|end|>": ("b", {"c": "</s>"})}, 3, None]
    assert controls.find(value) == "<|end|>"
    assert controls.find([{"a": ["b"]}, 3]) is None
    assert controls.find(controls.veil(value, PRIVATE[0])) is None


@pytest.mark.parametrize("typed", ["<|END|>", "＜|end|＞", "<|end｜>", "x<|eNd|>y"])
@pytest.mark.parametrize("normalized", [True, False])
def test_a_control_token_in_other_letters_stays_text_even_if_the_tokenizer_makes_them_alike(vocabulary_like, typed, normalized):
    from tokenizers import AddedToken, Tokenizer, normalizers
    from transformers import PreTrainedTokenizerFast

    state = json.loads(vocabulary_like("byte-level", CONTROLS, TEMPLATE).backend_tokenizer.to_str())
    core = Tokenizer.from_str(json.dumps({**state, "added_tokens": []}))
    core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    core.add_special_tokens([AddedToken(name, special=True, normalized=normalized) for name in CONTROLS])
    renderer = Renderer(PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE))
    plain, said = renderer.example(_talk("x", "river")), renderer.example(_talk(typed, "river"))
    count = [sum(number in renderer.controls.ids for number in example.input_ids) for example in (plain, said)]
    assert count[0] == count[1] == 5
    assert BatchRenderer.like(renderer).examples([_talk("x", "river"), _talk(typed, "river")]) == [plain, said]
    assert len(renderer.notes(2, 2)) == normalized, "that it was typed is told where it mattered"
