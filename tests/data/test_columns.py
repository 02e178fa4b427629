"""Proves that the shape of a data set is found by its columns and what stands in them, told in one line, and can be overridden."""

import json

import pytest

from tunesmith.data.advice import WHICH, ColumnsError
from tunesmith.data.columns import Columns, find_columns
from tunesmith.data.formats import to_conversations
from tunesmith.data.row import Row
from tunesmith.errors import DataError

SAID = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "There."}]
SPOKEN = [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "There."}]


def find(*rows: dict, **named) -> Columns:
    return find_columns([Row(values, "line 1") for values in rows], "rows.jsonl", **named)


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"messages": SAID}, "messages from 'messages'"),
        ({"conversations": SPOKEN}, "messages from 'conversations' (from and value)"),
        ({"conversations": SAID}, "messages from 'conversations'"),
        ({"id": 1, "dialogue_turns": SPOKEN}, "messages from 'dialogue_turns' (from and value); not read: id"),
        ({"conversations": json.dumps(SPOKEN)}, "messages from 'conversations' (from and value)"),
        (
            {"messages": [{**SAID[0], "id": 7}, {**SAID[1], "refusal": ""}]},
            "messages from 'messages'; not read: messages: id, messages: refusal",
        ),
        ({"": 0, "prompt": "", "completion": ""}, "'prompt' → 'completion'; not read: (no name)"),
        ({"a\ud800\x1b[2J": 0, "prompt": "", "completion": ""}, "'prompt' → 'completion'; not read: a\\ud800\\x1b[2J"),
        (
            {"conversation": {"from": ["human", "gpt"], "value": ["a", "b"], "id": [1, 2]}},
            "messages from 'conversation' (from and value); not read: conversation: id",
        ),
        ({"messages": SAID, "tools": "[]"}, "messages from 'messages', tools from 'tools'"),
        ({"prompt": "", "completion": ""}, "'prompt' → 'completion'"),
        ({"prompt": SAID[:1], "completion": SAID[1:]}, "'prompt' → 'completion'"),
        ({"prompt": "Where?", "completion": json.dumps(SAID[1:])}, "'prompt' → 'completion' (lists of messages as JSON)"),
        ({"prompt": str(SPOKEN[:1]), "completion": " "}, "'prompt' (lists of messages as JSON) → 'completion'"),
        (
            {"prompt": "", "completion": '{"role": ["assistant"], "content": ["a"]}'},
            "'prompt' → 'completion' (lists of messages as JSON)",
        ),
        ({"instruction": "", "input": "", "output": ""}, "'instruction' + 'input' → 'output'"),
        (
            {"instruction": "", "context": "", "response": "", "category": ""},
            "'instruction' + 'context' → 'response'; not read: category",
        ),
        ({"instruction": "", "output": "", "system": ""}, "'instruction' → 'output', system prompt from 'system'"),
        (
            {"instruction": "", "input": "", "output": "", "system": "", "history": [["a", "b"]]},
            "'instruction' + 'input' → 'output', earlier turns (trained too) from 'history', system prompt from 'system'",
        ),
        ({"prompt": "", "response": "", "history": []}, "'prompt' → 'response', earlier turns (trained too) from 'history'"),
        (
            {"instruction": "", "output": "", "history": json.dumps([["a", "b"]])},
            "'instruction' → 'output', earlier turns (trained too) from 'history'",
        ),
        ({"instruction": "", "output": "", "history": "The Middle Ages."}, "'instruction' → 'output'; not read: history"),
        ({"instruction": "", "output": "", "history": ["a", "b"]}, "'instruction' → 'output'; not read: history"),
        ({"messages": SAID, "history": [["a", "b"]]}, "messages from 'messages'; not read: history"),
        ({"system_prompt": "", "question": "", "response": ""}, "'question' → 'response', system prompt from 'system_prompt'"),
        ({"Question": "", "Answer": ""}, "'Question' → 'Answer'"),
        ({"problem": "", "solution": ""}, "'problem' → 'solution'"),
        ({"context": "", "question": "", "answer": ""}, "'question' + 'context' → 'answer'"),
        ({"prompt": "", "context": "", "completion": ""}, "'prompt' → 'completion'; not read: context"),
        ({"question": "", "context": {"title": []}, "answer": ""}, "'question' → 'answer'; not read: context"),
        ({"question": "", "context": None, "answer": ""}, "'question' + 'context' → 'answer'"),
        ({"text": ""}, "plain text from 'text', every token trained"),
        ({"instruction": "", "input": "", "output": "", "text": ""}, "'instruction' + 'input' → 'output'; not read: text"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_shape_is_found_and_told_in_one_line(row, line):
    assert find(row).describe() == line


def test_rows_are_looked_at_until_a_column_says_what_it_holds():
    assert find({"id": 1}, {"talk": None}, {"talk": SPOKEN}).messages == "talk"


def test_columns_that_only_later_rows_have_are_columns():
    assert find({"prompt": "a"}, {"prompt": "a", "completion": "b"}) == Columns(prompt="prompt", completion="completion")


@pytest.mark.parametrize(
    "text", ['[Ann] He said "from" and "role".', '["role", "from"]', '[[{"role": "user"}]]', '[{"name": "role"}]', "[]", "[" * 9999]
)
def test_text_in_brackets_is_a_conversation_only_if_it_is_a_list_of_messages(text):
    assert find({"chat": text, "prompt": "", "completion": ""}).prompt == "prompt"
    with pytest.raises(DataError, match="do not say which is the prompt"):
        find({"chat": text})


def test_a_conversation_that_is_no_json_leaves_it_to_the_next_row_what_the_column_holds():
    assert find({"chat": json.dumps(SPOKEN)[:-1]}, {"chat": json.dumps(SPOKEN)}) == Columns("chat", sharegpt=True)


def test_two_columns_of_messages_are_not_guessed_between():
    with pytest.raises(DataError, match=r"\(chosen_chat, rejected_chat\)"):
        find({"chosen_chat": SAID, "rejected_chat": SAID})


def test_one_column_alone_is_offered_as_plain_text():
    with pytest.raises(DataError) as caught:
        find({"body": "a"})
    assert "--text body" in caught.value.fix


@pytest.mark.parametrize(
    ("named", "columns"),
    [
        ({"text": "text"}, Columns(text="text")),
        ({"format": "text"}, Columns(text="text")),
        ({"format": "alpaca"}, Columns(prompt="instruction", completion="output", input="input", system="system")),
        ({"format": "sharegpt"}, Columns(messages="conversations", system="system")),
        ({"prompt": "id", "completion": "text", "system": "input"}, Columns(prompt="id", completion="text", system="input")),
    ],
    ids=str,
)
def test_what_is_found_can_be_overridden(named, columns):
    row = {"id": "", "instruction": "", "input": "", "output": "", "text": "", "conversations": SPOKEN, "system": ""}
    assert find(row, **named) == columns


def test_a_format_that_the_columns_do_not_have_is_refused():
    with pytest.raises(DataError, match="no columns for the format sharegpt"):
        find({"prompt": "", "completion": ""}, format="sharegpt")


@pytest.mark.parametrize("named", [{"system": "sytem"}, {"text": "txt"}, {"tools": "tool"}])
def test_a_named_column_that_is_missing_suggests_the_nearest(named):
    (name,) = named.values()
    with pytest.raises(DataError, match=f"no column '{name}' .did you mean"):
        find({"system": "", "text": "", "tools": ""}, **named)


def test_a_missing_column_is_named_as_the_nearest_that_is_left():
    with pytest.raises(ColumnsError) as caught:
        find({"question": "", "answer": ""}, prompt="qestion", completion="anwser")
    assert "no column 'qestion' (did you mean question?) and no column 'anwser' (did you mean answer?)" in caught.value.what
    assert caught.value.settings == {"prompt": "question", "completion": "answer"}


def test_of_very_many_columns_the_first_are_named():
    many = {f"c{n}": "" for n in range(2000)}
    assert find({**many, "prompt": "", "completion": ""}).describe().endswith("c10, c11 and 1,988 more")
    with pytest.raises(DataError, match=r"c11 and 1,988 more\)") as caught:
        find(many)
    assert len(str(caught.value)) < 300


def test_one_column_as_prompt_and_completion_is_refused():
    with pytest.raises(DataError, match="nothing but an echo"):
        find({"a": ""}, prompt="a", completion="a")


@pytest.mark.parametrize(
    ("row", "fix"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "--prompt prompt --completion chosen"),
        ({"prompt": SAID[:1], "chosen": SAID[1:], "rejected": SAID[1:]}, "--prompt prompt --completion chosen"),
        ({"prompt": SAID[:1], "chosen": json.dumps(SAID[1:]), "rejected": ""}, "--prompt prompt --completion chosen"),
        ({"prompt": "Where?", "chosen": SAID, "rejected": SAID}, "--messages chosen"),
        ({"prompt": SAID[:1], "chosen": SAID, "rejected": SAID}, "--messages chosen"),
        ({"question": "Where?", "chosen": json.dumps(SPOKEN), "rejected": ""}, "--messages chosen"),
        ({"chosen": SAID[1:], "rejected": SAID[1:]}, "--messages chosen"),
        ({"chosen": SAID, "rejected": SAID}, "--messages chosen"),
        ({"chosen": SAID, "rejected": None}, "--messages chosen"),
        ({"chosen": "Human: a", "rejected": "Human: b"}, "--text chosen"),
    ],
)
def test_of_preferences_the_rejected_answers_are_never_learnt_nor_suggested(row, fix):
    with pytest.raises(DataError, match="holds preferences") as caught:
        find(row)
    assert fix in caught.value.fix
    assert "rejected" not in caught.value.fix


def test_columns_that_mean_nothing_are_not_guessed_between():
    with pytest.raises(DataError) as caught:
        find({"context": "", "question": "", "answers": ""})
    assert caught.value.fix == "Name the columns you mean: --prompt COLUMN --completion COLUMN."
    with pytest.raises(DataError) as caught:
        find({"to ask": "", "said": ""})
    assert caught.value.fix == "Name the columns you mean: --prompt 'to ask' --completion said."


@pytest.mark.parametrize("labels", [[True, False], [False, None], ["true", "False"]], ids=str)
def test_completions_of_which_some_are_labelled_bad_are_not_learnt_alike_unless_the_format_is_named(labels):
    rows = [{"instruction": "a", "input": "x", "completion": "b", "label": label} for label in labels]
    with pytest.raises(ColumnsError, match=r"rows\.jsonl says in 'label' which completions are good") as caught:
        find(*rows)
    assert caught.value.fix.startswith("Keep the rows whose label is true. Or,")
    assert caught.value.settings == {"dataset_format": "prompt_completion"}
    assert caught.value.certain == {}, "the bad ones are not to be learnt by typing what comes next"
    assert find(*rows, format="prompt_completion") == Columns(prompt="instruction", input="input", completion="completion")


def test_rows_that_are_all_labelled_good_are_read_and_a_bad_one_among_the_later_is_refused():
    rows = [Row({"prompt": "a", "completion": "b", "label": n < 120}, f"line {n}") for n in range(121)]
    assert len(to_conversations(rows[:120], find_columns(rows, "rows.jsonl"))) == 120
    with pytest.raises(DataError, match="line 120 says in 'label' that its completion is bad"):
        to_conversations(rows, find_columns(rows, "rows.jsonl"))
    assert len(to_conversations(rows, find_columns(rows, "rows.jsonl", format="prompt_completion"))) == 121


@pytest.mark.parametrize("label", [3, "sports", None])
def test_a_label_that_says_nothing_of_good_and_bad_is_only_not_read(label):
    assert find({"prompt": "a", "completion": "b", "label": label}).unread == ("label",)


@pytest.mark.parametrize("messages", [SAID, SPOKEN], ids=["said", "spoken"])
def test_a_file_of_one_message_a_row_is_told_from_one_with_a_prompt_and_an_answer(messages):
    with pytest.raises(DataError, match="holds one message a row") as caught:
        find(*messages)
    assert '{"messages": [' in caught.value.fix


@pytest.mark.parametrize(
    "row", [{"from": "Bath", "value": "3"}, {"role": "nurse", "content": "a"}, {"role": None, "content": ""}], ids=str
)
def test_columns_that_are_only_called_like_those_of_a_message_are_named_as_any_others(row):
    with pytest.raises(DataError, match="do not say which is the prompt"):
        find(row)


@pytest.mark.parametrize("beside", [{}, {"n": 1}, {"id": "x"}])
def test_columns_inside_of_another_are_told_and_none_is_guessed(beside):
    row = {**beside, "data": {"question": "a", "answer": "b"}}
    with pytest.raises(DataError, match=r"columns inside of 'data', which holds objects \(question, answer\)\. Write") as caught:
        find(row)
    assert not isinstance(caught.value, ColumnsError), "no setting would read them"


def test_rows_without_columns_are_told():
    with pytest.raises(DataError, match=r"The rows of rows\.jsonl are empty objects"):
        find({}, {})


@pytest.mark.parametrize(
    ("row", "settings"),
    [
        ({"left": "a", "right": "b"}, {"prompt": "left", "completion": "right"}),
        ({"left": 1, "right": "b"}, {"prompt": WHICH, "completion": WHICH}),
        ({"a": "x", "b": "y", "meta": {"n": 1}}, {"prompt": WHICH, "completion": WHICH}),
        ({"body": "a"}, {"text": "body"}),
        ({"body": 1}, {"text": WHICH}),
    ],
)
def test_only_columns_that_hold_text_are_suggested(row, settings):
    with pytest.raises(ColumnsError) as caught:
        find(row)
    assert caught.value.settings == settings


def test_a_first_line_that_reads_like_a_row_is_not_certainly_a_header():
    with pytest.raises(ColumnsError, match="If the first line is a row and no header, write one above it") as caught:
        find({"How are you?": "Who?", "Fine.": "Me."})
    assert caught.value.certain == {}, "to follow it would lose a row"
