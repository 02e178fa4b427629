"""Proves that an answer counts as right for its words alone: white space and a closing aside on either side aside."""

import pytest

from tunesmith.generate.score import exact_matches, strip_aside

ASIDES = ("Hrrmmm.", "Yeesss.")


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("Cold, the wind is.", "Cold, the wind is.", True),
        ("Cold, the wind is. Hrrmmm.", "Cold, the wind is.", True),
        ("Cold, the wind is.", "Cold, the wind is. Yeesss.", True),
        ("Cold, the wind is. Hrrmmm.", "Cold, the wind is. Yeesss.", True),
        ("  Cold,\n the  wind is.\t", "Cold, the wind is.", True),
        ("cold, the wind is.", "Cold, the wind is.", False),
        ("Cold, the wind is", "Cold, the wind is.", False),
        ("Hrrmmm. Cold, the wind is.", "Cold, the wind is.", False),
        ("Cold, the wind is. Hrrmmm. Hrrmmm.", "Cold, the wind is.", False),
        ("", "Cold, the wind is.", False),
    ],
)
def test_an_answer_is_right_if_the_words_are(answer: str, expected: str, right: bool) -> None:
    assert exact_matches([answer], [expected], ASIDES) == [right]


def test_without_asides_they_are_words_like_others() -> None:
    assert exact_matches(["It is. Hrrmmm."], ["It is."]) == [False]


def test_one_verdict_an_answer_in_order() -> None:
    assert exact_matches(["a", "b", "c"], ["a", "x", "c"]) == [True, False, True]


def test_counts_that_differ_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="longer"):
        exact_matches(["a"], ["a", "b"])


def test_an_empty_aside_strips_nothing() -> None:
    assert strip_aside("It is.", ("",)) == "It is."


@pytest.mark.parametrize("asides", [("Hrrmmm.", "Yes, Hrrmmm."), ("Yes, Hrrmmm.", "Hrrmmm.")])
def test_the_longest_aside_that_fits_is_the_one_stripped(asides: tuple[str, ...]) -> None:
    assert strip_aside("It is. Yes, Hrrmmm.", asides) == "It is."


def test_an_answer_of_an_aside_alone_is_empty() -> None:
    assert strip_aside("Yeesss.", ASIDES) == ""
