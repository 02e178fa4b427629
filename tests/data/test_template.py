"""Proves that templates which cannot show an answer are refused, and that templates write what transformers lets them write."""

import json

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tunesmith.base.templates import TEMPLATES
from tunesmith.data.render import Renderer, render_text
from tunesmith.errors import ModelError

PARTS = TEMPLATES["chatml"].replace("message['content'] }}", "message['content'][0]['text'] }}")
LOUD = TEMPLATES["chatml"].replace("message['content'] }}", "message['content'] | upper }}")
SET_INSIDE = (
    "{% set seen = 'no' %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% generation %}{% set seen = 'yes' %}{{ m.content }}<|im_end|>{% endgeneration %}{{ seen }}{% endfor %}"
)


@pytest.mark.parametrize("template", [PARTS, LOUD], ids=["parts", "loud"])
def test_a_template_that_does_not_write_the_text_of_an_answer_is_refused_before_any_row(tokenizer_with, template):
    with pytest.raises(ModelError, match=r"leaves the text of an answer out, or wants it in another form") as caught:
        Renderer(tokenizer_with(template))
    assert "--chat-template" in caught.value.fix


def test_what_a_template_sets_within_a_generation_block_is_known_there_alone_as_in_transformers(tokenizer_with):
    tokenizer = tokenizer_with(SET_INSIDE)
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert render_text(tokenizer, messages, False) == tokenizer.apply_chat_template(messages, tokenize=False)


def test_a_template_that_ends_answers_with_another_models_token_is_refused_though_its_eos_follows(tokenizer_with):
    with pytest.raises(ModelError, match=r"ends an answer with '<\|end\|>', which is no token of this model") as caught:
        Renderer(tokenizer_with(TEMPLATES["phi3"]))
    assert "such as zephyr" in caught.value.fix
    Renderer(tokenizer_with(TEMPLATES["zephyr"]))


@pytest.mark.parametrize(
    ("end", "foreign"), [("</assistant>", ""), ("</answer>\n<|end|>", "<|end|>"), ("</s>", "</s>"), ("<a>", "")]
)
def test_a_plain_tag_before_the_stop_token_is_a_models_own_way_and_no_token_of_others(tokenizer_with, end, foreign):
    template = TEMPLATES["chatml"].replace("<|im_end|>", end + "<|im_end|>")
    if not foreign:
        assert Renderer(tokenizer_with(template)).stop_token_id
        return
    with pytest.raises(ModelError) as caught:
        Renderer(tokenizer_with(template))
    assert f"ends an answer with {foreign!r}" in caught.value.what


def test_an_ordinary_token_of_the_vocabulary_may_end_a_turn(vocabulary_like):
    template = "{% for m in messages %}<s>{{ m['content'] }}<eos></s>{% endfor %}{% if add_generation_prompt %}<s>{% endif %}"
    tokenizer = vocabulary_like("byte-level", ("<s>", "</s>"), template)
    with pytest.raises(ModelError, match="ends an answer with '<eos>'"):
        Renderer(tokenizer)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["model"]["vocab"]["<eos>"] = max(tokenizer.get_vocab().values()) + 1
    known = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), bos_token="<s>", eos_token="</s>", chat_template=template
    )
    assert "<eos>" not in known.get_added_vocab()
    Renderer(known)
