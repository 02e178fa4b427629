"""Proves exact labels on the chat templates of many families: the real ones that trl carries, and ours for those it does not."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.base.templates import TEMPLATES
from tunesmith.data.conversation import Conversation, Message
from tunesmith.data.render import IGNORE, Example, Renderer
from tunesmith.errors import RowError

OURS = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Known:
    """A family. stop: ends an answer. answer: what the template makes of one. system: whether it takes a system prompt. added:
    tokens it writes that are not special. apart: whether each answer takes an example of its own."""

    template: str
    stop: str
    answer: Callable[[str], str] = field(default=lambda text: text)
    system: bool = True
    added: tuple[str, ...] = ()
    apart: bool = False
    call: str | None = None


def thoughtless(text: str) -> str:
    return "<think>\n\n</think>\n\n" + text.lstrip("\n")


QWEN_CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich"}}\n</tool_call><|im_end|>'
LLAMA_CALL = '{"name": "get_weather", "parameters": {"city": "Zürich"}}<|eot_id|>'
THINK = ("<think>", "</think>")
KNOWN = {
    "chatml": Known("chatml", "<|im_end|>"),
    "zephyr": Known("zephyr", "<EOS>"),
    "llama2": Known("llama2.jinja", "<EOS>", lambda text: f" {text.strip()} "),
    "mistral": Known("mistral", "<EOS>", lambda text: f" {text}", system=False),
    "mistral_tools": Known(
        "mistral_tools.jinja", "<EOS>", lambda text: f" {text.strip()}", system=False,
        call='[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Zürich"}}]<EOS>',
    ),
    "llama3": Known("trl:llama3", "<|eot_id|>", str.strip),
    "llama3_1": Known("trl:llama3_1", "<|eot_id|>", str.strip, call=LLAMA_CALL),
    "llama3_2": Known("trl:llama3_2", "<|eot_id|>", str.strip, call=LLAMA_CALL),
    "gemma": Known("trl:gemma", "<end_of_turn>", str.strip, system=False),
    "gemma3": Known("trl:gemma3", "<end_of_turn>", str.strip),
    "phi3": Known("trl:phi3", "<|end|>"),
    "phi3_5": Known("trl:phi3_5", "<|end|>"),
    "qwen2_5": Known("trl:qwen2_5", "<|im_end|>", added=("<tool_call>", "</tool_call>"), call=QWEN_CALL),
    "qwen3": Known(
        "trl:qwen3", "<|im_end|>", thoughtless, added=(*THINK, "<tool_call>", "</tool_call>"), apart=True,
        call="<think>\n\n</think>\n\n" + QWEN_CALL,
    ),
    "qwen3_2507": Known("trl:qwen3_instruct_2507", "<|im_end|>", added=("<tool_call>", "</tool_call>"), call=QWEN_CALL),
    "granite": Known(
        "granite.jinja", "<|end_of_text|>",
        call='<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Zürich"}}]<|end_of_text|>',
    ),
    "olmo": Known("olmo.jinja", "<EOS>"),
    "command_r": Known("trl:cohere", "<|END_OF_TURN_TOKEN|>", str.strip),
    "command_a": Known("trl:cohere2", "<|END_RESPONSE|>"),
    "lfm2": Known("trl:lfm2", "<|im_end|>"),
    "gpt_oss": Known(
        "trl:gptoss", "<|return|>", lambda text: f"<|channel|>final<|message|>{text}", apart=True,
        call=' to=functions.get_weather<|channel|>commentary json<|message|>{"city": "Zürich"}<|call|>',
    ),
}  # fmt: skip
CONTROL = re.compile(r"<\|[a-zA-Z0-9_]+\|>|<｜[^<>]+｜>|<(?:start|end)_of_turn>|\[/?[A-Z_]+\]|<(?:BOS|EOS)>")
OPENED = {"zephyr", "olmo"}  # write <|role|> piece by piece
TYPED = ["<|im_end|>", "<|im_start|>assistant\n", "<EOS>", "<BOS>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "[/INST]", "<|end"]

every_family = pytest.mark.parametrize("name", KNOWN)
property_of = settings(max_examples=20, deadline=None)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.text("ab .,\n\t <|/>[]é☕日", max_size=12)
anything = st.lists(words | st.sampled_from(TYPED), max_size=3).map("".join)
ordinary = st.text("abcdefgh ,.!?éß日本12\n", min_size=1, max_size=20).map(lambda text: f"x{text}x")


def source_of(template: str) -> str:
    if template.startswith("trl:"):
        import trl

        return (Path(trl.__file__).parent / "chat_templates" / f"{template[4:]}.jinja").read_text(encoding="utf-8")
    return (OURS / template).read_text(encoding="utf-8") if template.endswith(".jinja") else TEMPLATES[template]


@pytest.fixture(scope="module")
def made(tokenizer_of_controls) -> Callable[[str], Renderer]:
    """The renderer of a family, by name."""

    @cache
    def renderer(name: str) -> Renderer:
        known = KNOWN[name]
        source = source_of(known.template)
        written = dict.fromkeys(CONTROL.findall(source)) | dict.fromkeys(known.stop for _ in [0] if known.stop != "<EOS>")
        roles = ("<|system|>", "<|user|>", "<|assistant|>") if name in OPENED | {"phi3", "phi3_5"} else ()
        return Renderer(tokenizer_of_controls(source, (*written, *roles), known.added))

    return renderer


def runs(renderer: Renderer, example: Example) -> list[str]:
    """The text of every stretch of trained tokens."""
    stretches = [list(run) for trained, run in groupby(example.labels, lambda label: label != IGNORE) if trained]
    return [renderer.tokenizer.decode(ids, skip_special_tokens=False) for ids in stretches]


def talk(system: str | None, turns: list[tuple[str, str]]) -> Conversation:
    messages = [Message("system", system)] if system is not None else []
    for question, answer in turns:
        messages += [Message("user", question), Message("assistant", answer)]
    return Conversation(tuple(messages), "rows.jsonl line 7")


def conversations(text: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[str | None, list[tuple[str, str]]]]:
    return st.tuples(st.none() | text, st.lists(st.tuples(text, text), min_size=1, max_size=3))


def control_counts(renderer: Renderer, example: Example) -> Counter[int]:
    return Counter(number for number in example.input_ids if number in renderer.controls.ids)


def test_there_are_more_than_a_dozen_families_and_every_template_is_another_one():
    sources = {source_of(known.template) for known in KNOWN.values()}
    assert len(sources) == len(KNOWN) >= 12


@every_family
@property_of
@given(drawn=conversations(anything))
def test_what_is_trained_is_each_answer_and_one_stop_token_whatever_was_typed(made, name, drawn):
    known, renderer = KNOWN[name], made(name)
    system, turns = drawn
    row = talk(system if known.system else None, turns)
    examples = renderer.examples([row])
    assert [run for example in examples for run in runs(renderer, example)] == [known.answer(a) + known.stop for _, a in turns]
    assert len(examples) == (len(turns) if known.apart else 1)
    stops = sum(example.labels.count(renderer.stop_token_id) for example in examples)
    assert stops == len(turns)


@every_family
@property_of
@given(drawn=conversations(anything))
def test_typed_text_never_becomes_a_control_token(made, name, drawn):
    known, renderer = KNOWN[name], made(name)
    system, turns = drawn
    row = talk(system if known.system else None, turns)
    plain = Conversation(tuple(replace(m, content="x" if m.content.strip() else m.content) for m in row.messages), row.where)
    assert [control_counts(renderer, e) for e in renderer.examples([row])] == [
        control_counts(renderer, e) for e in renderer.examples([plain])
    ]


@every_family
@property_of
@given(drawn=conversations(anything))
def test_the_first_answer_of_every_example_follows_the_very_prompt_that_chat_makes(made, name, drawn):
    known, renderer = KNOWN[name], made(name)
    system, turns = drawn
    row = talk(system if known.system else None, turns)
    answers = [index for index, message in enumerate(row.messages) if message.role == "assistant"]
    for example, index in zip(renderer.examples([row]), answers):
        prompt = renderer.prompt_ids(row.as_dicts()[:index])
        assert example.input_ids[: len(prompt)] == prompt
        assert set(example.labels[: len(prompt)]) == {IGNORE}
        assert example.labels[len(prompt)] != IGNORE


@every_family
@property_of
@given(drawn=conversations(ordinary))
def test_ordinary_text_has_the_tokens_of_the_whole_text_and_every_prompt_is_a_prefix(made, name, drawn):
    known, renderer = KNOWN[name], made(name)
    system, turns = drawn
    row = talk(system if known.system else None, turns)
    examples = renderer.examples([row])
    for number, index in enumerate(index for index, m in enumerate(row.messages) if m.role == "assistant"):
        example = examples[number if known.apart else 0]
        prompt = renderer.prompt_ids(row.as_dicts()[:index])
        assert example.input_ids[: len(prompt)] == prompt
        assert example.labels[len(prompt)] == example.input_ids[len(prompt)]
    text = renderer.tokenizer.apply_chat_template(row.as_dicts(), tokenize=False)
    assert examples[-1].input_ids == renderer.tokenizer(text, add_special_tokens=False)["input_ids"]


TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather now.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "Where."}}, "required": ["city"]},
    },
}
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich"}}}


def weather(result: str = "12 °C", system: tuple[Message, ...] = ()) -> Conversation:
    messages = (
        Message("user", "How warm is it?"),
        Message("assistant", "", more={"tool_calls": [CALL]}),
        Message("tool", result, more={"name": "get_weather", "tool_call_id": "abcdefghi"}),
        Message("assistant", "It is 12 °C."),
    )
    return Conversation((*system, *messages), "rows.jsonl line 7", (TOOL,))


@pytest.mark.parametrize("name", [name for name, known in KNOWN.items() if known.call])
def test_calls_of_tools_are_trained_and_their_results_are_not(made, name):
    known, renderer = KNOWN[name], made(name)
    examples = renderer.examples([weather()])
    trained = [run for example in examples for run in runs(renderer, example)]
    assert trained == [known.call, known.answer("It is 12 °C.") + known.stop]
    whole = renderer.tokenizer.decode(examples[-1].input_ids, skip_special_tokens=False)
    assert "The weather now." in whole
    assert "12 °C" in whole
    prompt = renderer.prompt_ids(weather().as_dicts()[:1], [TOOL])
    assert examples[0].input_ids[: len(prompt)] == prompt


@pytest.mark.parametrize("name", [name for name, known in KNOWN.items() if known.call])
def test_control_tokens_in_what_a_tool_gives_back_stay_text(made, name):
    renderer = made(name)
    typed = weather(f"12 °C{KNOWN[name].stop}<BOS>")
    counts = [[control_counts(renderer, e) for e in renderer.examples([row])] for row in (typed, weather())]
    assert counts[0] == counts[1]
    assert renderer.tokenizer.decode(renderer.examples([typed])[-1].input_ids).count(KNOWN[name].stop) == (
        renderer.tokenizer.decode(renderer.examples([weather()])[-1].input_ids).count(KNOWN[name].stop) + 1
    )


@pytest.mark.parametrize("name", [name for name, known in KNOWN.items() if not known.call])
def test_templates_that_know_no_tools_refuse_them_with_the_reason(made, name):
    with pytest.raises(RowError, match=r"rows.jsonl line 7: .*(tool|alternat|take turns|user and assistant)"):
        made(name).examples([weather()])


# ---- thoughts


def thought(text: str, answer: str) -> str:
    return f"<think>\n{text}\n</think>\n\n{answer}"


THOUGHTFUL = Conversation(
    (
        Message("user", "2+2?"),
        Message("assistant", thought("easy", "4")),
        Message("user", "3+3?"),
        Message("assistant", thought("hm", "6")),
    ),
    "rows.jsonl line 7",
)


def test_a_thinking_template_that_forgets_thoughts_shows_each_as_it_is_asked_for(made):
    renderer = made("qwen3")
    first, second = renderer.examples([THOUGHTFUL])
    assert runs(renderer, first) == ["<think>\neasy\n</think>\n\n4<|im_end|>"]
    assert runs(renderer, second) == ["<think>\nhm\n</think>\n\n6<|im_end|>"]
    assert "easy" not in renderer.tokenizer.decode(second.input_ids)


def test_a_model_that_is_asked_to_think_is_shown_the_rest_of_the_thought_and_the_answer(tokenizer_of_controls):
    source = source_of("trl:deepseek_r1_distill")
    renderer = Renderer(tokenizer_of_controls(source, ["<｜end▁of▁sentence｜>"], ("<｜User｜>", "<｜Assistant｜>", *THINK)))
    first, second = renderer.examples([THOUGHTFUL])
    assert runs(renderer, first) == ["easy\n</think>\n\n4<｜end▁of▁sentence｜>"]
    assert runs(renderer, second) == ["hm\n</think>\n\n6<｜end▁of▁sentence｜>"]
    for example, index in ((first, 1), (second, 3)):
        prompt = renderer.prompt_ids(THOUGHTFUL.as_dicts()[:index])
        assert example.input_ids[: len(prompt)] == prompt
        assert example.labels[len(prompt)] != IGNORE
    with pytest.raises(RowError, match=r"line 7: this model is asked with <think> .* message 2 holds no thought"):
        renderer.examples([talk(None, [("2+2?", "4")])])


def test_tokens_that_open_turns_without_being_special_stay_text_when_typed(tokenizer_of_controls):
    source = source_of("trl:deepseek_r1_distill")
    renderer = Renderer(tokenizer_of_controls(source, ["<｜end▁of▁sentence｜>"], ("<｜User｜>", "<｜Assistant｜>", *THINK)))
    typed = renderer.prompt_ids([{"role": "user", "content": "a<｜Assistant｜>b<｜User｜>"}])
    assert control_counts(renderer, Example(typed, typed, "")) == control_counts(
        renderer, Example(ids := renderer.prompt_ids([{"role": "user", "content": "ab"}]), ids, "")
    )


def test_reasoning_in_a_field_of_its_own_is_trained_where_the_template_reads_it(made):
    row = Conversation((Message("user", "2+2?"), Message("assistant", "4", more={"reasoning_content": "easy"})), "line 7")
    renderer = made("qwen3")
    assert runs(renderer, renderer.example(row)) == ["<think>\neasy\n</think>\n\n4<|im_end|>"]
    with pytest.raises(RowError, match=r"line 7: the chat template leaves the reasoning_content of message 2 out.*<think>"):
        made("llama3").examples([row])


# ---- nothing is left out in silence


def test_a_template_that_shows_the_system_prompt_only_until_the_answer_is_there_is_refused(made):
    with pytest.raises(RowError, match="line 7: the chat template does not keep the prompt as it was"):
        made("mistral_tools").examples([talk("Be brief.", [("a", "b")])])


@pytest.fixture(scope="module")
def deaf(tokenizer_of_controls) -> Renderer:
    return Renderer(tokenizer_of_controls(source_of("deaf.jinja"), ["<|im_start|>", "<|im_end|>"], ()))


def test_a_template_that_leaves_a_message_out_is_refused(deaf):
    with pytest.raises(RowError, match=r"line 7: the chat template leaves message 1 \(system\) out"):
        deaf.examples([talk("Be brief.", [("Hi", "Hello")])])
    row = Conversation((*talk(None, [("a", "b")]).messages, Message("tool", "12"), Message("assistant", "c")), "line 7")
    with pytest.raises(RowError, match=r"message 3 \(tool\)"):
        deaf.examples([row])


def test_a_template_that_leaves_the_tools_out_is_refused(deaf):
    with pytest.raises(RowError, match="leaves the tools out"):
        deaf.examples([Conversation(talk(None, [("a", "b")]).messages, "line 7", (TOOL,))])


def test_a_template_that_drops_an_answers_thought_is_refused(tokenizer_of_controls):
    source = source_of("deaf.jinja").replace("turn['content'] if", "turn['content'].split('</think>')[-1] if")
    renderer = Renderer(tokenizer_of_controls(source, ["<|im_start|>", "<|im_end|>"], THINK))
    with pytest.raises(RowError, match="leaves the thought of message 2 out"):
        renderer.examples([THOUGHTFUL])
