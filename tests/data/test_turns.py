"""Proves that what a template puts before an answer of its own is no surprise: thoughts, and headers of turns."""

import pytest

from tunesmith.base.templates import TEMPLATES
from tunesmith.data.batch_render import BatchRenderer
from tunesmith.data.conversation import DOCUMENT, Conversation, Message
from tunesmith.data.render import IGNORE, Renderer
from tunesmith.errors import RowError

START = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
END = "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
THINKS = "{% if m.role == 'assistant' %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
OPENED = f"{START}{THINKS}{END}<think>\n{{% endif %}}"
NO_THOUGHT = "{% if m.role == 'assistant' and '</think>' not in m.content %}<think></think>{% endif %}"
EMPTY = f"{START}{NO_THOUGHT}{END}<think>\n{{% endif %}}"
HEADLESS = f"{START}{END.partition('{% if')[0]}"


def asked(answer: str, **more: str) -> Conversation:
    return Conversation((Message("user", "Where?"), Message("assistant", answer, more=more)), "rows.jsonl line 7")


def trained(renderer: Renderer, row: Conversation) -> str:
    example = renderer.example(row)
    return renderer.tokenizer.decode([label for label in example.labels if label != IGNORE], skip_special_tokens=False)


def test_a_thought_in_an_answer_before_which_the_template_writes_an_empty_one_is_refused(tokenizer_with):
    renderer = Renderer(tokenizer_with(OPENED))
    with pytest.raises(RowError, match=r"rows.jsonl line 7: message 2 begins with a thought, and the chat template") as caught:
        renderer.examples([asked("<think>\nHm.\n</think>\n\nThere.")])
    assert '"reasoning_content"' in caught.value.fix
    assert trained(renderer, asked("There.", reasoning_content="Hm.")) == "Hm.\n</think>\n\nThere.<|im_end|>"


@pytest.mark.parametrize("answer", ["There.", "It ends with </think>.", " <think> is a tag."])
def test_an_answer_that_only_speaks_of_thoughts_is_no_thought(tokenizer_with, answer):
    assert trained(Renderer(tokenizer_with(OPENED)), asked(answer)) == f"\n</think>\n\n{answer}<|im_end|>"


def test_an_answer_without_the_thought_that_its_prompt_has_begun_is_refused_for_that(tokenizer_with):
    renderer = Renderer(tokenizer_with(EMPTY))
    with pytest.raises(RowError, match=r"line 7: this model is asked with <think> .* the text of message 2 holds no thought"):
        renderer.examples([asked("There.")])
    assert trained(renderer, asked("<think>\nHm.\n</think>There.")) == "Hm.\n</think>There.<|im_end|>"


def test_a_model_that_has_to_write_the_header_of_its_turn_itself_is_told(tokenizer_with):
    headless, whole = (Renderer(tokenizer_with(template)) for template in (HEADLESS, TEMPLATES["chatml"]))
    headless.examples([Conversation((Message(DOCUMENT, "There."),), "rows.jsonl line 6")])
    assert headless.notes(1, 1) == (), "plain text has no turns"
    assert trained(headless, asked("There.")) == "<|im_start|>assistant\nThere.<|im_end|>"
    (note,) = headless.notes(1, 1)
    assert note == (
        "the chat template has no generation prompt: the model learns to write '<|im_start|>assistant\\n' before each answer"
    )
    assert whole.notes(1, 1) == ()


def test_a_template_whose_answers_need_no_header_has_nothing_to_tell(tokenizer_of):
    assert Renderer(tokenizer_of("mistral")).notes(1, 1) == ()


def test_a_stop_token_that_closes_the_whole_text_once_more_is_trained_once_a_turn(tokenizer_of_controls):
    tokenizer = tokenizer_of_controls(TEMPLATES["phi3"], ["<|user|>", "<|assistant|>", "<|end|>"])
    tokenizer.eos_token = "<|end|>"
    renderer = Renderer(tokenizer)
    row = Conversation((*asked("There.").messages, *asked("Here.").messages), "rows.jsonl line 7")
    assert trained(renderer, row) == "There.<|end|>Here.<|end|>"
    assert renderer.tokenizer.decode(renderer.example(row).input_ids).endswith("Here.<|end|>\n<|end|>")
    assert BatchRenderer.like(renderer).examples([row] * 3) == [renderer.example(row)] * 3
