"""Proves that lists of messages of both forms are read alike, that marks are honoured, and that what is wrong has its number."""

import json
from datetime import datetime

import pytest

from tunesmith.data.columns import Columns
from tunesmith.data.conversation import Conversation, Message
from tunesmith.data.formats import to_conversations
from tunesmith.data.row import Row
from tunesmith.errors import RowError

TALK = Columns(messages="talk", tools="tools")
CALL = {"type": "function", "function": {"name": "find", "arguments": {"near": "Bath"}}}
TOOL = {"type": "function", "function": {"name": "find", "description": "Finds.", "parameters": {"type": "object"}}}


def read(columns: Columns = TALK, **values) -> Conversation:
    return to_conversations([Row(values, "rows.jsonl line 4")], columns)[0]


def refusal(columns: Columns = TALK, **values) -> str:
    with pytest.raises(RowError) as caught:
        read(columns, **values)
    assert caught.value.what.startswith("rows.jsonl line 4")
    assert "--on-bad-row skip" in caught.value.fix
    return caught.value.what


def say(role: str, content: str, **more) -> dict:
    return {"role": role, "content": content, **more}


def test_speakers_are_roles():
    spoken = [
        ("system", "Be brief."),
        ("human", "Hi"),
        ("gpt", "Hello"),
        ("user", "Bye"),
        ("chatgpt", "Ciao"),
        ("observation", "12"),
    ]
    messages = read(talk=[{"from": who, "value": text} for who, text in spoken]).messages
    assert [m.role for m in messages] == ["system", "user", "assistant", "user", "assistant", "tool"]
    assert [m.content for m in messages] == [text for _, text in spoken]


def test_an_unknown_speaker_is_refused_with_its_number():
    assert "message 2: 'humn' is not a speaker that is known (did you mean human?)" in refusal(
        talk=[{"from": "gpt", "value": "a"}, {"from": "humn", "value": "b"}]
    )


@pytest.mark.parametrize("value", [None, 3, ["a"]])
def test_what_a_speaker_says_must_be_text(value):
    assert "message 1" in refusal(talk=[{"from": "human", "value": value}, {"from": "gpt", "value": "b"}])


def test_what_else_a_speaker_brings_is_read_as_in_other_messages():
    spoken = {"from": "gpt", "value": "Look.", "tool_calls": [CALL], "reasoning_content": "Hm.", "weight": 0}
    answer = read(talk=[{"from": "human", "value": "a"}, spoken, {"from": "gpt", "value": "b"}]).messages[1]
    assert answer == Message("assistant", "Look.", False, {"reasoning_content": "Hm.", "tool_calls": [CALL]})


@pytest.mark.parametrize("value", ["", "[]"])
def test_a_speaker_who_calls_without_a_call_is_refused(value):
    assert "message 2 is a function_call without a call" in refusal(
        talk=[{"from": "human", "value": "a"}, {"from": "function_call", "value": value}]
    )


@pytest.mark.parametrize(("role", "meant"), [("human", "user"), ("gpt", "assistant"), ("developer", "system")])
def test_a_role_by_another_name_is_refused_with_its_own(role, meant):
    with pytest.raises(RowError, match=f"message 1: role '{role}' is not one of") as caught:
        read(talk=[say(role, "a"), say("assistant", "b")])
    assert f"Rename it to {meant}." in caught.value.fix


# ---- marks


@pytest.mark.parametrize(
    ("mark", "trained"),
    [({}, True), ({"train": True}, True), ({"train": False}, False), ({"weight": 1}, True), ({"weight": 0}, False),
     ({"weight": 0.0}, False), ({"train": None, "weight": None}, True), ({"train": True, "weight": 0}, False)],
    ids=str,
)  # fmt: skip
def test_train_and_weight_say_whether_an_answer_is_learnt(mark, trained):
    messages = read(talk=[say("user", "a"), say("assistant", "b", **mark), say("user", "c"), say("assistant", "d")]).messages
    assert [m.train for m in messages if m.role == "assistant"] == [trained, True]


@pytest.mark.parametrize(
    "mark", [{"weight": 0.5}, {"weight": -1}, {"weight": "1"}, {"weight": True}, {"train": "no"}, {"train": 0}], ids=str
)
def test_other_marks_are_refused_with_the_number(mark):
    assert "message 2: " in refusal(talk=[say("user", "a"), say("assistant", "b", **mark)])


@pytest.mark.parametrize("mark", [{"train": True}, {"weight": 1}])
def test_a_question_cannot_be_marked_to_be_trained(mark):
    assert "message 1: it is marked to be trained" in refusal(talk=[say("user", "a", **mark), say("assistant", "b")])


def test_a_row_whose_answers_are_all_marked_out_is_refused():
    assert "every answer is marked not to be trained" in refusal(talk=[say("user", "a"), say("assistant", "b", train=False)])


# ---- tools


CALLING = [
    say("assistant", "", tool_calls=[CALL]),
    say("assistant", None, tool_calls=[{"function": {"name": "find", "arguments": '{"near": "Bath"}'}}]),
    {"role": "assistant", "tool_calls": [{"name": "find", "arguments": {"near": "Bath"}}]},
    {"role": "assistant", "content": "", "tool_calls": '[{"name": "find", "parameters": {"near": "Bath"}}]'},
    {"from": "function_call", "value": '{"name": "find", "arguments": {"near": "Bath"}}'},
]


@pytest.mark.parametrize("message", CALLING, ids=range(len(CALLING)))
def test_calls_in_every_form_are_one_form(message):
    answer = read(talk=[say("user", "a"), message]).messages[1]
    assert answer == Message("assistant", "", more={"tool_calls": [CALL]})


@pytest.mark.parametrize("tools", [[TOOL], [TOOL["function"]], f"[{TOOL!r}]".replace("'", '"')], ids=["wrapped", "bare", "text"])
def test_tools_in_every_form_are_one_form(tools):
    assert read(talk=[say("user", "a"), say("assistant", "b")], tools=tools).tools == (TOOL,)


@pytest.mark.parametrize("tools", [None, [], "", " ", "null", "[]"])
def test_a_row_may_have_no_tools(tools):
    assert read(talk=[say("user", "a"), say("assistant", "b")], tools=tools).tools == ()


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_the_name_of_who_speaks_is_kept_for_templates_that_write_it(role):
    talk = [say(role, "a", name="Luke"), say("user", "a"), say("assistant", "b")]
    assert read(talk=talk).messages[0].more == {"name": "Luke"}


def test_what_templates_read_of_a_result_is_kept():
    result = say("tool", "12", name="find", tool_call_id="7", extra="x")
    assert read(talk=[result, say("assistant", "b")]).messages[0].more == {"name": "find", "tool_call_id": "7"}


@pytest.mark.parametrize(
    ("calls", "says"),
    [
        ("{", "message 2, tool_calls is text that is not JSON"),
        ([{"arguments": {}}], "message 2, tool_calls, call 1 has no name"),
        ([CALL, {"name": "find", "arguments": "["}], "call 2, its arguments is text that is not JSON"),
        ([{"name": "find", "arguments": [1]}], "its arguments are a list, not an object"),
        (7, "tool_calls is a number, not a list"),
        ([{"name": "find", "arguments": {"a": "\ud83d"}}], "half a character"),
        ([{"name": "find\ud83d", "arguments": {}}], "half a character"),
        ([{"name": "find", "arguments": {"when": datetime(2026, 1, 1)}}], "call 1 holds a datetime, and JSON has no such value"),
        ([{"name": "find", "arguments": {"near": [b"Bath"]}}], "call 1 holds bytes, and JSON"),
        ([{"name": "find", "arguments": {"near": float("nan")}}], "call 1 holds nan, and JSON"),
    ],
    ids=str,
)
def test_calls_that_are_none_are_refused_with_their_number(calls, says):
    assert says in refusal(talk=[say("user", "a"), say("assistant", "", tool_calls=calls)])


def test_only_the_assistant_calls():
    assert "message 1: tool_calls stand in a message of user" in refusal(
        talk=[say("user", "a", tool_calls=[CALL]), say("assistant", "b")]
    )


def test_tools_without_a_name_are_refused():
    assert "column 'tools', tool 2 has no name" in refusal(talk=[say("user", "a"), say("assistant", "b")], tools=[TOOL, {}])


# ---- other shapes


@pytest.mark.parametrize("prompt", ["Where?", [say("user", "Where?")], [say("system", "Be brief."), say("user", "Where?")]])
def test_a_completion_that_begins_with_the_prompt_is_refused_with_the_way_to_read_it(prompt):
    columns = Columns(prompt="prompt", completion="chosen")
    asked = prompt if isinstance(prompt, list) else [say("user", prompt)]
    assert "'chosen' begins with the prompt" in refusal(columns, prompt=prompt, chosen=[*asked, say("assistant", "There.")])
    assert len(read(columns, prompt=prompt, chosen=[say("assistant", "There.")]).messages) == len(asked) + 1
    assert len(read(columns, prompt="Echo", chosen="Echo").messages) == 2


ALPACA = Columns(prompt="instruction", completion="output", input="input", system="system")


@pytest.mark.parametrize(("given", "asked"), [("12", "Add.\n\n12"), ("", "Add."), (None, "Add.")])
def test_an_input_stands_below_its_instruction_unless_it_is_empty(given, asked):
    messages = read(ALPACA, instruction="Add.", input=given, output="There.", system="").messages
    assert [m.content for m in messages] == [asked, "There."]


def test_a_system_prompt_comes_first():
    messages = read(ALPACA, instruction="Add.", input="", output="There.", system="Be brief.").messages
    assert messages[0] == Message("system", "Be brief.")


def test_two_system_prompts_are_refused():
    columns = Columns(messages="talk", system="system")
    assert "a system prompt in 'system' and another" in refusal(
        columns, talk=[say("system", "a"), say("user", "b"), say("assistant", "c")], system="d"
    )


def test_plain_text_is_a_document():
    row = read(Columns(text="text"), text="Once upon a time")
    assert row.is_document
    assert row.messages[0].content == "Once upon a time"


@pytest.mark.parametrize("text", ["", " \n", None, 4])
def test_plain_text_that_is_none_is_refused(text):
    assert "column 'text'" in refusal(Columns(text="text"), text=text)


def test_a_nul_character_is_refused():
    assert "message 1 holds a NUL character" in refusal(talk=[say("user", "a\0b"), say("assistant", "c")])


def test_content_in_parts_is_their_text():
    parts = [{"type": "text", "text": "It is "}, {"type": "text", "text": "there."}]
    assert read(talk=[say("user", "Where?"), say("assistant", parts)]).messages[1].content == "It is there."


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"type": "image_url", "image_url": {}}, "part 2 is image_url"),
        ("text", "part 2 is text without a type,"),
        ({"type": "text"}, "part 2 is empty"),
        ({"text": "It is "}, "part 2 has no type."),
        ({}, "part 2 has no type."),
    ],
)
def test_parts_that_are_no_text_are_refused_with_their_number(part, says):
    text = {"type": "text", "text": "Look:"}
    assert f"message 1, {says}" in refusal(talk=[say("user", [text, part]), say("assistant", "A cat.")])


def test_a_list_of_messages_may_stand_there_as_json_text():
    talk = [say("user", "Wo? – „da“"), say("assistant", "There.", train=False), say("user", "Where?"), say("assistant", "Here.")]
    assert read(talk=json.dumps(talk)) == read(talk=talk)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Where?", "'talk' is text that is not JSON: Expecting value."),
        (str([say("user", "Where?")]), "'talk' is text that is not JSON"),
        ('[{"role": "user", "role": "system", "content": "a"}]', "the key 'role' stands there twice"),
        ('"Where?"', "'talk' is text, not a list of messages"),
        ("[]", "'talk' is empty, not a list of messages"),
    ],
)
def test_text_that_is_no_list_of_messages_is_refused(text, says):
    assert says in refusal(talk=text)


@pytest.mark.parametrize("mark", [{"train_on_turn": False}, {"mask": True}, {"loss": 0}, {"train_detail": []}])
def test_marks_of_other_tools_are_refused_not_passed_over(mark):
    assert f"message 2: {next(iter(mark))} is another tool's mark" in refusal(
        talk=[say("user", "a"), say("assistant", "b", **mark)]
    )
    assert read(talk=[say("user", "a"), say("assistant", "b", **dict.fromkeys(mark))]).messages[1].train


def test_a_call_in_the_old_form_is_refused_not_passed_over():
    call = {"name": "find", "arguments": "{}"}
    assert "message 2 has a function_call" in refusal(talk=[say("user", "a"), say("assistant", "", function_call=call)])
    assert read(talk=[say("user", "a"), say("assistant", "b", function_call=None)]).messages[1].content == "b"


def test_arguments_that_are_not_strict_json_are_refused():
    call = {"type": "function", "function": {"name": "find", "arguments": '{"near": NaN}'}}
    assert "NaN is no JSON value" in refusal(talk=[say("user", "a"), say("assistant", "", tool_calls=[call])])


def test_messages_that_stand_there_as_an_object_of_lists_are_messages():
    lists = {"role": ["user", "assistant"], "content": ["Where?", "There."], "weight": [None, 1]}
    assert read(talk=lists) == read(talk=[say("user", "Where?"), say("assistant", "There.")])
    assert "'talk' is an object, not a list of messages" in refusal(talk={**lists, "weight": [1]})
