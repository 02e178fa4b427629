"""Proves that rows of every known shape become the conversations they mean, and that all others are refused with their row."""

import json

import pytest

from tunesmith.data.formats import PAIRS, Columns, Message, conversations, find_columns, to_conversations
from tunesmith.data.sources import Row
from tunesmith.errors import DataError

PROMPT = Columns(prompt="prompt", completion="completion")
MESSAGES = Columns(messages="messages")
QUESTION, ANSWER = {"role": "user", "content": "Where?"}, {"role": "assistant", "content": "There."}


def _row(**values) -> Row:
    return Row(values, "rows.jsonl line 4")


def _convert(columns: Columns, **values) -> tuple[Message, ...]:
    return to_conversations([_row(**values)], columns)[0].messages


def _refusal(columns: Columns, **values) -> str:
    with pytest.raises(DataError) as caught:
        _convert(columns, **values)
    assert caught.value.fix
    assert "rows.jsonl line 4" in caught.value.what
    return caught.value.what


@pytest.mark.parametrize(("prompt", "completion"), PAIRS)
def test_known_pairs_of_columns_are_found_among_others(prompt, completion):
    row = _row(id=1, **{completion: "There.", "note": "", prompt: "Where?"})
    assert find_columns([row], "rows.jsonl") == Columns(prompt=prompt, completion=completion)


def test_a_column_of_messages_goes_before_a_pair():
    assert find_columns([_row(prompt="", completion="", messages=[])], "rows.jsonl") == MESSAGES


def test_named_columns_go_before_known_ones():
    row = _row(prompt="", completion="", messages=[], ask="", tell="", talk=[])
    assert find_columns([row], "rows.jsonl", prompt="ask", completion="tell") == Columns(prompt="ask", completion="tell")
    assert find_columns([row], "rows.jsonl", messages="talk") == Columns(messages="talk")


def test_the_bundled_data_knows_its_columns():
    row = _row(sentence="", translation="", translation_extra="")
    assert find_columns([row], "yoda") == Columns(prompt="sentence", completion="translation_extra")


def test_a_folder_of_ones_own_under_a_bundled_name_is_read_by_its_own_columns(tmp_path, monkeypatch):
    (tmp_path / "yoda").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_columns([_row(question="", answer="")], "yoda") == Columns(prompt="question", completion="answer")


@pytest.mark.parametrize("named", [{"messages": "promt"}, {"prompt": "promt", "completion": "note"}, {"completion": "promt"}])
def test_a_named_column_that_is_missing_suggests_the_nearest(named):
    with pytest.raises(DataError) as caught:
        find_columns([_row(prompt="", note="")], "rows.jsonl", **named)
    assert "rows.jsonl has no column 'promt' (did you mean prompt?); it has prompt, note" in caught.value.what


def test_columns_that_say_nothing_are_listed():
    with pytest.raises(DataError, match=r"The columns of rows.jsonl \(left, right\)"):
        find_columns([_row(left="", right="")], "rows.jsonl")


@pytest.mark.parametrize(
    ("columns", "text"), [(PROMPT, "'prompt' → 'completion'"), (MESSAGES, "messages from 'messages'")], ids=["pair", "messages"]
)
def test_columns_describe_themselves(columns, text):
    assert columns.describe() == text


def test_a_prompt_and_a_completion_are_a_question_and_an_answer():
    assert _convert(PROMPT, prompt="Where? ", completion=" There.") == (Message("user", "Where? "), Message("assistant", " There."))


def test_an_empty_prompt_is_a_prompt():
    assert _convert(PROMPT, prompt="", completion="There.")[0] == Message("user", "")


def test_prompt_and_completion_may_be_lists_of_messages():
    system = {"role": "system", "content": "Be brief."}
    both = _convert(PROMPT, prompt=[system, QUESTION], completion=[ANSWER])
    assert both == (Message("system", "Be brief."), Message("user", "Where?"), Message("assistant", "There."))
    assert _convert(PROMPT, prompt=[QUESTION], completion="There.") == both[1:]


def test_messages_keep_their_order_and_lose_what_is_not_role_or_content():
    named = {"role": "user", "content": "Where?", "name": "Luke"}
    tool = {"role": "tool", "content": "42"}
    assert [m.role for m in _convert(MESSAGES, messages=[named, ANSWER, tool, ANSWER])] == [
        "user",
        "assistant",
        "tool",
        "assistant",
    ]


def test_conversations_are_given_back_as_chat_templates_take_them():
    (conversation,) = to_conversations([_row(messages=[QUESTION, ANSWER])], MESSAGES)
    assert conversation.as_dicts() == [QUESTION, ANSWER]
    assert conversation.where == "rows.jsonl line 4"


def test_every_row_becomes_one_conversation_in_order():
    rows = [Row({"prompt": str(n), "completion": "x"}, f"line {n}") for n in range(3)]
    assert [(c.messages[0].content, c.where) for c in to_conversations(rows, PROMPT)] == [(str(n), f"line {n}") for n in range(3)]


@pytest.mark.parametrize("completion", ["", "  \n", [{"role": "assistant", "content": " "}], [QUESTION]])
def test_a_row_without_assistant_text_is_refused(completion):
    assert "no assistant text" in _refusal(PROMPT, prompt="Where?", completion=completion)


def test_messages_without_an_assistant_are_refused():
    assert "no assistant text" in _refusal(MESSAGES, messages=[QUESTION, {"role": "system", "content": "Be brief."}])


@pytest.mark.parametrize(
    ("value", "kind"),
    [(None, "empty"), (7, "a number"), (1.5, "a number"), (True, "true or false"), ({"a": 1}, "an object"), (["a"], "a list")],
)
def test_a_cell_that_is_not_text_is_refused_with_its_column(value, kind):
    assert f"column 'completion' is {kind}, not text" in _refusal(PROMPT, prompt="Where?", completion=value)
    assert f"column 'prompt' is {kind}, not text" in _refusal(PROMPT, prompt=value, completion="There.")


def test_a_row_that_lacks_the_column_is_refused():
    assert "line 4 has no 'completion'; it has prompt." in _refusal(PROMPT, prompt="Where?")
    assert "line 4 has no 'messages'; it has prompt." in _refusal(MESSAGES, prompt="Where?")


@pytest.mark.parametrize(("value", "kind"), [(None, "empty"), ([], "empty"), ({"role": "user"}, "an object")])
def test_messages_that_are_no_list_or_an_empty_one_are_refused(value, kind):
    assert f"'messages' is {kind}, not a list of messages" in _refusal(MESSAGES, messages=value)


@pytest.mark.parametrize("side", ["prompt", "completion"])
def test_an_empty_list_for_one_side_is_refused(side):
    assert f"'{side}' is empty" in _refusal(PROMPT, **{"prompt": "Where?", "completion": "There.", side: []})


@pytest.mark.parametrize("item", ["Where?", None, {"role": "user"}, {"content": "Where?"}, {"value": "Where?"}])
def test_a_message_without_role_and_content_is_refused_with_its_number(item):
    assert "message 2 is not an object with role and content" in _refusal(MESSAGES, messages=[QUESTION, item, ANSWER])


@pytest.mark.parametrize("content", [None, 3, [], {"text": "There."}])
def test_content_that_is_not_text_is_refused_with_its_number(content):
    assert "message 2 is" in _refusal(MESSAGES, messages=[QUESTION, {"role": "assistant", "content": content}])


@pytest.mark.parametrize(("role", "hint"), [("asistant", "did you mean assistant?"), ("User", "did you mean user?"), (None, "")])
def test_an_unknown_role_is_refused_with_the_nearest_known_one(role, hint):
    refusal = _refusal(MESSAGES, messages=[QUESTION, {"role": role, "content": "There."}])
    assert f"message 2: role {role!r} is not one of system, user, assistant, tool" in refusal
    assert hint in refusal


@pytest.mark.parametrize("half", ["\ud83d", "smile \ude00 smile"])
def test_half_a_character_is_refused_before_the_tokenizer_sees_it(half):
    assert "column 'completion'" in _refusal(PROMPT, prompt="Where?", completion=half)
    assert "message 1" in _refusal(MESSAGES, messages=[{"role": "user", "content": half}, ANSWER])


def test_whole_characters_beyond_the_basic_plane_are_text():
    assert _convert(PROMPT, prompt="😀", completion="\ufffd𝄞")[1].content == "\ufffd𝄞"


BEGIN = [Row({"instruction": "Sum up.", "output": "There."}, f"line {n}") for n in range(120)]


def _last(row: dict, first: list[Row] = BEGIN) -> tuple[Message, ...]:
    """The messages of a row that only comes when the columns have been found."""
    rows = [*first, Row(row, "line 121")]
    return to_conversations(rows, find_columns(rows, "rows.jsonl"))[-1].messages


def test_an_input_and_a_system_prompt_that_only_later_rows_have_are_read():
    row = {"instruction": "Sum up.", "input": "A tale.", "output": "There.", "system_prompt": "Be brief."}
    assert _last(row) == (Message("system", "Be brief."), Message("user", "Sum up.\n\nA tale."), Message("assistant", "There."))


def test_tools_that_only_later_rows_have_are_read():
    rows = [Row({"messages": [QUESTION, ANSWER]}, f"line {n}") for n in range(120)]
    rows.append(Row({"messages": [QUESTION, ANSWER], "tools": [{"name": "find"}]}, "line 121"))
    assert [len(c.tools) for c in to_conversations(rows, find_columns(rows, "rows.jsonl"))] == [0] * 120 + [1]


def test_what_the_user_did_not_name_is_not_read_from_later_rows_either():
    rows = [*BEGIN, Row({"instruction": "Sum up.", "input": "A tale.", "output": "There."}, "line 121")]
    columns = find_columns(rows, "rows.jsonl", prompt="instruction", completion="output")
    assert to_conversations(rows, columns)[-1].messages[0] == Message("user", "Sum up.")


def test_answers_within_a_prompt_are_asked_about_and_not_learnt():
    both = _convert(PROMPT, prompt=[QUESTION, {"role": "assistant", "content": "Here?"}, QUESTION], completion=[ANSWER])
    assert [(m.role, m.train) for m in both] == [("user", True), ("assistant", False), ("user", True), ("assistant", True)]


def test_a_blank_completion_is_refused_even_if_the_prompt_holds_an_answer():
    prompt = [QUESTION, {"role": "assistant", "content": "Here?"}, QUESTION]
    assert "has no assistant text to learn" in _refusal(PROMPT, prompt=prompt, completion=" ")


@pytest.mark.parametrize(("blank", "asked"), [("", "A tale."), (" \n", "A tale."), ("Sum up.", "Sum up.\n\nA tale.")])
def test_an_input_below_no_instruction_stands_alone(blank, asked):
    columns = Columns(prompt="instruction", completion="output", input="input")
    assert _convert(columns, instruction=blank, input="A tale.", output="There.")[0] == Message("user", asked)


def test_a_blank_system_prompt_is_none_and_the_templates_own_stays():
    columns = Columns(prompt="prompt", completion="completion", system="system")
    assert [m.role for m in _convert(columns, prompt="Where?", completion="There.", system=" \n")] == ["user", "assistant"]


def test_a_passage_that_is_no_text_says_how_to_leave_it_out():
    columns = Columns(prompt="question", completion="answer", input="context")
    with pytest.raises(DataError, match="column 'context' is a list, not text") as caught:
        _convert(columns, question="Where?", answer="There.", context=["A tale."])
    assert "--prompt question --completion answer" in caught.value.fix


def test_rows_of_other_columns_say_how_files_of_both_are_read():
    with pytest.raises(DataError, match="has no 'prompt'; it has messages") as caught:
        _convert(PROMPT, messages=[QUESTION, ANSWER])
    assert "named one by one, with commas" in caught.value.fix


SPOKEN = [{"from": "gpt", "value": "There."}]
LISTS = {"role": ["assistant"], "content": ["There."]}


def _read(*completions: str) -> list[tuple[Message, ...]]:
    """The messages of rows with these completions, their columns found as they are in a file."""
    rows = [Row({"prompt": "Where?", "completion": text}, f"rows.jsonl line {n}") for n, text in enumerate(completions, 1)]
    return [conversation.messages for conversation in to_conversations(rows, find_columns(rows, "rows.jsonl"))]


@pytest.mark.parametrize("said", [[ANSWER], SPOKEN, LISTS], ids=["role", "from", "lists"])
def test_lists_of_messages_that_csv_holds_as_json_are_the_messages_and_never_learnt_as_text(said):
    expected = _convert(PROMPT, prompt=[QUESTION], completion=[ANSWER])
    assert _convert(PROMPT, prompt="Where?", completion=said) == expected
    assert _read(json.dumps(said, indent=1), json.dumps(said), "There.") == [expected] * 3
    with pytest.raises(DataError, match="line 2: 'completion' is text that is not JSON"):
        _read(json.dumps(said), json.dumps(said)[:-3])
    with pytest.raises(DataError, match="line 1: 'completion' is text that is not JSON"):
        _read(str(said))


def test_an_answer_that_is_json_itself_stays_text_among_others_that_are_not():
    written = json.dumps([QUESTION, ANSWER])
    assert [messages[1].content for messages in _read("There.", written, "Here.")] == ["There.", written, "Here."]


@pytest.mark.parametrize(
    "text",
    [
        '[{"role": "viewer", "content": "x"}]', '[{"name": "a"}]', "[1]", '["role", "content"]', "[{",
        '{"role": "user", "content": "x"}', '[{"role": "user", "content": "x"}] is how a question is written.',
    ],
)  # fmt: skip
def test_other_json_in_a_prompt_or_completion_is_text(text):
    assert [messages[1].content for messages in _read(text, text)] == [text, text]


@pytest.mark.parametrize("mark", [{"train": True}, {"weight": 1}], ids=str)
def test_an_answer_within_a_prompt_that_is_marked_to_be_trained_is_refused(mark):
    prompt = [QUESTION, {**ANSWER, **mark}, QUESTION]
    assert "column 'prompt', message 2 is marked to be trained" in _refusal(PROMPT, prompt=prompt, completion="There.")
    assert _convert(PROMPT, prompt="Where?", completion=[{**ANSWER, **mark}])[1].train


def _told(*later: dict) -> list[str]:
    """What is told of rows that come when the columns have been found."""
    rows = [*BEGIN, *(Row(row, f"line {number}") for number, row in enumerate(later, 121))]
    told: list[str] = []
    list(conversations(rows, find_columns(rows, "rows.jsonl"), tell=told.append))
    return told


def test_columns_that_only_later_rows_have_are_told_and_so_is_what_is_not_read_for_them():
    row = {"instruction": "Sum up.", "output": "There."}
    assert _told({**row, "note": ""}, row) == []
    assert _told({**row, "context": "A tale."}, {**row, "context": "A tale.", "input": "Another."}, {**row, "input": "One."}) == [
        "'context' first stands in line 121, and is read from there on",
        "'input' first stands in line 122, and is not read: 'context' is",
    ]
    assert _told({**row, "context": ["A tale."]}) == ["'context' first stands in line 121, and is not read: it is no text"]


ALPACA = {"instruction": "And there?", "input": "", "output": "Yes."}


@pytest.mark.parametrize("written", [list, json.dumps], ids=["a list", "as JSON"])
def test_turns_before_an_instruction_come_before_it_and_are_trained_as_any_earlier_answers(written):
    row = {**ALPACA, "input": "Look.", "system": "Be brief.", "history": written([["Where?", "Here."], ["Really?", "No."]])}
    assert [(m.role, m.content, m.train) for m in _last(row, [])] == [
        ("system", "Be brief.", True),
        ("user", "Where?", True), ("assistant", "Here.", True),
        ("user", "Really?", True), ("assistant", "No.", True),
        ("user", "And there?\n\nLook.", True), ("assistant", "Yes.", True),
    ]  # fmt: skip


def test_turns_before_a_prompt_come_after_the_system_prompt_that_stands_in_it():
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "And there?"}]
    row = {"prompt": prompt, "completion": "Yes.", "history": [["Where?", "Here."]]}
    assert [m.role for m in _last(row, [])] == ["system", "user", "assistant", "user", "assistant"]
    with pytest.raises(DataError, match="has a system prompt in 'system' and another in its messages"):
        _last({**row, "system": "Be kind."}, [])


@pytest.mark.parametrize("nothing", [None, [], "", "[]"], ids=repr)
def test_a_row_may_have_no_turns_before_its_instruction(nothing):
    first = [Row({**ALPACA, "history": nothing}, "line 1")]
    assert [m.role for m in _last({**ALPACA, "history": nothing}, first)] == ["user", "assistant"]
    assert [m.role for m in _last({**ALPACA, "history": [["a", "b"]]}, first)] == ["user", "assistant"] * 2


@pytest.mark.parametrize(
    ("history", "says"),
    [
        ([["a", "b"], ["c"]], "column 'history', turn 2 is a list of 1, not a pair"),
        ([["a", "b", "c"]], "turn 1 is a list of 3, not a pair"),
        (["a", "b"], "turn 1 is text, not a pair"),
        ([["a", None]], "turn 1 is empty, not text"),
        ({"a": "b"}, "column 'history' is an object, not a list of turns"),
        ("[[", "is text that is not JSON"),
    ],
)
def test_turns_that_are_none_are_refused_with_their_number_among_others_that_are_some(history, says):
    with pytest.raises(DataError, match=f"line 121,? .*{says}"):
        _last({**ALPACA, "history": history}, [Row({**ALPACA, "history": [["a", "b"]]}, "line 1")])


def test_an_instruction_without_an_answer_is_refused_even_if_turns_before_it_have_one():
    with pytest.raises(DataError, match="line 121 has no assistant text to learn"):
        _last({**ALPACA, "output": " ", "history": [["a", "b"]]}, [])


def test_turns_that_only_later_rows_have_are_told():
    assert _told({**ALPACA, "history": [["a", "b"]]})[-1] == "'history' first stands in line 121, and is read from there on"
    assert _told({**ALPACA, "history": "The Middle Ages."})[-1] == (
        "'history' first stands in line 121, and is not read: it is no list of pairs"
    )


def test_what_is_to_be_known_of_a_file_is_told_with_its_first_row():
    told: list[str] = []
    list(conversations([Row({"prompt": "a", "completion": "b"}, "line 2", "It is odd")], PROMPT, tell=told.append))
    assert told == ["It is odd"]


def test_a_prompt_that_begins_the_answer_is_refused():
    said = _refusal(PROMPT, prompt=[QUESTION, ANSWER], completion=[ANSWER])
    assert "'prompt' ends with the beginning of an answer" in said
