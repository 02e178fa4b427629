"""Proves that each thing looked for is found where it was put, named by its row, and not found where it is not."""

from typing import Any

import pytest

from tunesmith.data.conversation import DOCUMENT, Conversation, Message
from tunesmith.data.findings import Finding, Said, find, said, system_prompts

SUBJECTS = ("wind", "river", "bridge", "garden", "knight", "baker", "mountain", "harbour", "teacher", "winter")
VERBS = ("sleeps", "waits", "turns", "sings", "falls", "grows")


def row(number: int, question: str, answer: str, system: str = "") -> Said:
    messages = [Message("system", system)] if system else []
    return said(Conversation((*messages, Message("user", question), Message("assistant", answer)), f"rows.jsonl line {number}"))


def good(count: int = 60) -> list[tuple[str, str]]:
    pairs = [(s, v) for s in SUBJECTS for v in VERBS][:count]
    return [
        (f"Why is it that the {s} {v} number {i} now?", f"The {s} {v} as they have for {i * 7} years.")
        for i, (s, v) in enumerate(pairs)
    ]


def found(pairs: list[tuple[str, str]], held_out: list[tuple[str, str]] | None = None) -> dict[str, Finding]:
    rows = [row(i, *pair) for i, pair in enumerate(pairs, 1)]
    others = [said(Conversation((Message("user", q), Message("assistant", a)), f"held.jsonl line {i}"))
              for i, (q, a) in enumerate(held_out or [], 1)]  # fmt: skip
    return {finding.name: finding for finding in find(rows, others)}


def test_good_rows_have_nothing_to_look_at() -> None:
    findings = found(good(), [("Who was it that came?", "Nobody was there.")])
    assert len(findings) == 13
    for finding in findings.values():
        assert finding.count == 0, finding
        assert not finding.worth_a_look
        assert finding.rows == ()


@pytest.mark.parametrize(
    ("name", "pair"),
    [
        ("empty_answers", ("Say nothing at all.", " \n ")),
        ("missing_answers", ("How many are there?", "nan")),
        ("missing_answers", ("How many are there?", " None\n")),
        ("refusals", ("Help me with it.", "I'm sorry, but I can't help with that.")),
        ("unfinished_answers", ("Tell it all.", "It was then that the")),
        ("exact_duplicates", (good()[3][0].upper(), good()[3][1] + " ")),
        ("near_duplicates", (good()[3][0], good()[3][1].removesuffix(".") + "!!")),
        ("conflicting_answers", (good()[3][0], "Nobody ever knew it.")),
        ("other_languages", ("Wo ist der Hund, und warum ist er nicht da?", "Der Hund ist nicht da, und ich auch nicht.")),
        ("control_characters", ("What of \x1b[31m this?", "Nothing of it is known.")),
        ("control_characters", ("What of \u202e this?", "Nothing of it is known.")),
        ("control_characters", ("What of \ufffd this?", "Nothing of it is known.")),
    ],
)
def test_one_row_of_it_is_found_and_named(name: str, pair: tuple[str, str]) -> None:
    pairs = good()
    pairs.insert(10, pair)
    finding = found(pairs)[name]
    assert finding.count >= 1
    assert finding.looked_at == 61
    named = {sight.where for sight in finding.rows}
    assert "rows.jsonl line 11" in named or name.endswith("duplicates"), named
    assert all(sight.text and "\n" not in sight.text for sight in finding.rows)


def test_the_second_of_two_duplicates_is_named_and_says_where_the_first_is() -> None:
    pairs = [*good(), good()[3]]
    (sight,) = found(pairs)["exact_duplicates"].rows
    assert sight.where == "rows.jsonl line 61"
    assert "rows.jsonl line 4:" in sight.text


def test_leaks_name_both_rows() -> None:
    pairs = good()
    findings = found(pairs, [pairs[4], (pairs[5][0], "Other."), ("Fresh, is it?", "It is fresh.")])
    assert findings["leaks"].count == 2
    assert findings["leaks"].looked_at == 3
    assert findings["leaks"].worth_a_look
    assert [sight.where for sight in findings["leaks"].rows] == ["held.jsonl line 1", "held.jsonl line 2"]
    assert "rows.jsonl line 5" in findings["leaks"].rows[0].text


def test_a_long_answer_to_many_questions_is_found() -> None:
    pairs = [
        (q, "The same long answer this is, whatever is asked.") if i in (3, 9, 12) else (q, a) for i, (q, a) in enumerate(good())
    ]
    finding = found(pairs)["repeated_answers"]
    assert finding.count == 3
    assert finding.rows[0].text.startswith("to 3 questions: ")


def test_a_shared_system_prompt_makes_no_rows_alike() -> None:
    prompt = "You are a careful assistant who answers in one sentence and never says more than was asked of it. " * 4
    rows = [row(i, *pair, system=prompt) for i, pair in enumerate(good(), 1)]
    assert {f.name: f.count for f in find(rows, [])}["near_duplicates"] == 0
    assert system_prompts(rows) == ((prompt, 60),)


def test_calls_of_tools_are_no_empty_answers_and_answers_not_trained_are_not_judged() -> None:
    call: dict[str, Any] = {"tool_calls": [{"type": "function", "function": {"name": "find", "arguments": {}}}]}
    messages = (
        Message("user", "Find it."), Message("assistant", "As an AI language model, no.", train=False), Message("user", "Do."),
        Message("assistant", "", more=call),
    )  # fmt: skip
    one = said(Conversation(messages, "rows.jsonl line 1"))
    findings = {f.name: f.count for f in find([one], [])}
    assert findings["empty_answers"] == findings["refusals"] == 0


def test_what_follows_the_last_answer_is_found() -> None:
    messages = (Message("user", "Who?"), Message("assistant", "I."), Message("user", "And then?"))
    findings = {f.name: f for f in find([said(Conversation(messages, "rows.jsonl line 1"))], [])}
    assert findings["unanswered"].rows[0].text == "And then?"
    assert findings["unanswered"].worth_a_look


def test_a_question_is_all_before_the_last_answer_in_one_form_however_it_is_written() -> None:
    turns = [Message("system", "Be."), Message("user", " ﬁrst\n THING "), Message("assistant", "  "), Message("tool", "e\u0301")]
    one = said(Conversation((*turns, Message("assistant", "Yes.  So")), "line 1"))
    assert (one.question, one.answer, one.asked) == ("first thing é", "yes. so", "e\u0301")


def test_plain_texts_are_compared_and_ask_nothing() -> None:
    texts = [
        said(Conversation((Message(DOCUMENT, text),), f"t.txt line {i}")) for i, text in enumerate(["A text.", "A text.", "B."])
    ]
    findings = {f.name: f.count for f in find(texts, [])}
    assert findings["exact_duplicates"] == 1
    assert findings["conflicting_answers"] == findings["repeated_answers"] == 0


def test_no_rows_at_all() -> None:
    assert all(finding.count == 0 and not finding.worth_a_look for finding in find([], []))
