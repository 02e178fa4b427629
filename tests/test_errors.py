"""Proves that every error says what happened and what to do, and that near names are near."""

import importlib
import inspect

import pytest

import tunesmith
from tunesmith import errors
from tunesmith.errors import TunesmithError, near, nearest

LEAVES = [e for _, e in inspect.getmembers(errors, inspect.isclass) if issubclass(e, TunesmithError) and e is not TunesmithError]


def test_there_are_nine_kinds_and_the_docstring_draws_each() -> None:
    assert len(LEAVES) == 9
    assert errors.__doc__ is not None
    for leaf in LEAVES:
        assert f"── {leaf.__name__}" in errors.__doc__


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.__name__)
def test_each_error_keeps_what_and_fix_apart_and_says_both(leaf: type[TunesmithError]) -> None:
    error = leaf("The tap drips.", "Turn it off.")
    assert (error.what, error.fix) == ("The tap drips.", "Turn it off.")
    assert str(error) == "The tap drips. Turn it off."


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.__name__)
def test_one_except_catches_all_of_them_and_no_bug(leaf: type[TunesmithError]) -> None:
    with pytest.raises(TunesmithError):
        raise leaf("a", "b")
    assert not issubclass(leaf, (OSError, ValueError, KeyError))


def test_an_error_cannot_be_made_without_a_fix() -> None:
    with pytest.raises(TypeError):
        errors.DataError("The file is empty.")  # type: ignore[call-arg]


def test_nearest_names_the_closest_known_name() -> None:
    assert nearest("learning_rat", ["lora_r", "learning_rate"]) == " (did you mean learning_rate?)"


def test_nearest_is_silent_when_nothing_is_near() -> None:
    assert nearest("zzzz", ["lora_r", "learning_rate"]) == ""
    assert nearest("anything", []) == ""


@pytest.mark.parametrize(
    ("typed", "known", "meant"),
    [
        ("dry_run", ["lora_rank", "learning_rate"], None),
        ("no.jsonl", ["x.jsonl"], None),
        ("god.jsonl", ["x.jsonl", "good.jsonl"], "good.jsonl"),
        ("alpha", ["dataset", "lora_alpha", "lora_alpha_pattern"], "lora_alpha"),
        ("", ["_x"], None),
    ],
)
def test_a_name_is_near_if_it_is_spelled_alike_or_a_word_of_the_known_one(typed: str, known: list[str], meant: str | None) -> None:
    assert near(typed, known) == meant


def test_nearest_takes_any_iterable() -> None:
    assert nearest("tran", (name for name in ("train", "plan"))) == " (did you mean train?)"


def test_every_public_name_of_the_package_is_there() -> None:
    for name in importlib.import_module("tunesmith").__all__:
        assert getattr(tunesmith, name) is not None
