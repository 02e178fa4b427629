"""Proves what the suites take for a right answer, whatever a model wraps it in, and what they do not."""

import json
from collections import Counter
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.generate.suite import CHECKS, SUITES, final_number, first_json, follows, general_texts, has_shape, load_items, says


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("Paris", True),
        ("The capital of France is **Paris**.", True),
        ("PARIS!!!", True),
        ("París", True),
        ("Paris, in France, it is.", True),
        ("Parisian", False),
        ("It is not Paris but Lyon", False),
        ("", False),
        ("\x00\u202e", False),
        ("Lyon", False),
    ],
)
def test_a_fact_is_a_whole_word_that_is_not_denied(answer, right):
    assert says(answer, ["Paris"]) is right


def test_of_several_phrases_one_is_enough():
    assert says("it is CO₂", ["carbon dioxide", "CO2"])
    assert says("Carbon-dioxide gas", ["carbon dioxide"])


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("12", 12),
        ("2 + 3 = 5", 5),
        ("= 5. Then 6 more.", 5),
        ("7 × 8 = 56\n\nSo 8 × 7 = 56.", 56),
        ("The answer is 1,234.", 1234),
        ("It is 12.50 dollars", Decimal("12.5")),
        ("-3", -3),
        ("−3", -3),
        ("10-4", 4),
        ("3, 4", 4),
        ("x = y, about 7", 7),
        ("12.0.", 12),
        ("$15", 15),
    ],
)
def test_the_number_an_answer_comes_to(answer, number):
    assert final_number(answer) == number


@pytest.mark.parametrize("answer", ["", "twelve", "=", "∞ NaN", "½", "١٢"])
def test_no_number_is_found_where_there_is_none(answer):
    assert final_number(answer) is None


@given(st.text())
def test_no_answer_at_all_brings_an_extraction_down(text):
    final_number(text)
    first_json(text)
    says(text, ["a"])
    for item in load_items():
        assert item.is_right(text) in (True, False)


@given(st.integers(-(10**12), 10**12), st.text(alphabet="abc .,!?\n"))
def test_a_number_said_last_is_found_behind_any_words(number, words):
    assert final_number(f"{words} {number:,}") == number


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=8).map(lambda x: [x]))
def test_json_is_found_within_prose_and_fences(value):
    text = json.dumps(value)
    assert first_json(f"Sure! Here it is:\n```json\n{text}\n```\nAnything else?") == value


@pytest.mark.parametrize("answer", ['{"a": 1', "{'a': 1}", '{"a": NaN}', '{"a": Infinity}', '{"a": 1,}', "no", "[" * 100_000, ""])
def test_what_is_not_json_is_none(answer):
    assert first_json(answer) is None


@pytest.mark.parametrize(
    ("value", "shape", "fits"),
    [
        ({"name": "Anna", "age": 31, "more": None}, {"name": "string", "age": "number"}, True),
        ({"name": "Anna", "age": "31"}, {"name": "string", "age": "number"}, False),
        ({"name": "Anna"}, {"name": "string", "age": "number"}, False),
        ({"ok": True}, {"ok": "boolean"}, True),
        ({"n": True}, {"n": "number"}, False),
        ([], ["string"], False),
        (["a", 1], ["string"], False),
        ([{"id": 1}], [{"id": "number"}], True),
        ("text", {"a": "string"}, False),
        (None, ["string"], False),
    ],
)
def test_shapes(value, shape, fits):
    assert has_shape(value, shape) is fits


@pytest.mark.parametrize(
    ("constraints", "right", "wrong"),
    [
        ({"only": ["yes", "no"]}, " Yes. ", "Yes, it is"),
        ({"starts": "Cats"}, "Cats purr.", "The Cats purr."),
        ({"ends": "?"}, 'He asked, "How was your day?"', "How was your day? Fine."),
        ({"contains": ["dog", "ball"]}, "The dog has a Ball", "The dog runs"),
        ({"contains": ["HELLO"]}, "HELLO", "hello"),
        ({"without": ["cold"]}, "Snow is coldly white", "Snow is Cold."),
        ({"case": "upper"}, "RED!", "Red"),
        ({"case": "lower"}, "good day", "Good day"),
        ({"most words": 2}, "deep, blue", "deep and blue"),
        ({"least lines": 2}, "Rome\n\nParis", "Rome, Paris"),
    ],
)
def test_instructions_are_checked_one_by_one(constraints, right, wrong):
    assert follows(right, constraints)
    assert not follows(wrong, constraints)
    assert not follows("  \n", constraints)


def test_every_item_has_one_check_and_every_suite_enough_of_them():
    items = load_items()
    assert set(Counter(item.suite for item in items)) == set(SUITES)
    assert min(Counter(item.suite for item in items).values()) >= 20
    assert len({item.ask for item in items}) == len(items)
    assert {item.check for item in items} == set(CHECKS)
    assert len(general_texts()) >= 5


def test_no_question_answers_itself():
    """Repeating the question earns nothing, but for a few instructions that name what to write."""
    parrots = [item.ask for item in load_items() if item.is_right(item.ask) and item.suite != "instructions"]
    assert not parrots
