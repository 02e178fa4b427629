"""Proves that near duplicates are those an exact comparison of all pairs finds, and that the time stays bounded."""

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.duplicates import ALIKE, SHINGLE, groups_of, near_groups, normalised


def words(generator: random.Random, count: int) -> str:
    return " ".join("".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=generator.randint(2, 9))) for _ in range(count))


def jaccard(a: str, b: str) -> float:
    """By definition, in sets of strings: the oracle."""
    one, two = ({text[i : i + SHINGLE] for i in range(len(text) - SHINGLE + 1)} for text in (a, b))
    return len(one & two) / len(one | two) if one | two else 0.0


@pytest.mark.parametrize(
    ("a", "b"), [("The  WIND\n", "the wind"), ("ﬁne", "fine"), ("STRASSE", "straße"), ("１２", "12"), ("\u00a0a", "a")]
)
def test_normal_forms_agree(a: str, b: str) -> None:
    assert normalised(a) == normalised(b)


@pytest.mark.parametrize(("a", "b"), [("3+4", "3-4"), ("a b", "ab"), ("Yes.", "Yes?"), ("naïve", "naive")])
def test_what_makes_a_difference_is_kept(a: str, b: str) -> None:
    assert normalised(a) != normalised(b)


def test_groups_are_of_equal_keys_in_order() -> None:
    assert groups_of("abcab") == [[0, 3], [1, 4]]
    assert groups_of([]) == []


def test_planted_near_duplicates_are_found_and_nothing_else() -> None:
    generator = random.Random(0)
    texts = [words(generator, 40) for _ in range(400)]
    for i in range(40):
        texts[200 + i] = texts[i] + " and more"
    expected = [[i, 200 + i] for i in range(40)]
    assert all(jaccard(texts[a], texts[b]) >= ALIKE for a, b in expected)
    assert near_groups(texts) == expected


def test_groups_hold_only_what_is_alike() -> None:
    """Texts at every distance: pairs well above the threshold are found, pairs below never are."""
    generator = random.Random(1)
    base = words(generator, 60).split()
    for changed in range(12):
        other = list(base)
        for place in range(changed):
            other[place * 5] = "zzzz"
        pair = [" ".join(base), " ".join(other)]
        found = bool(near_groups([*pair, *(words(generator, 60) for _ in range(30))]))
        like = jaccard(*pair) if changed else 0.0
        if like >= ALIKE + 0.05 or like < ALIKE:
            assert found == (like >= ALIKE), (changed, like)


def test_what_all_rows_repeat_makes_no_two_alike() -> None:
    generator = random.Random(2)
    instruction = words(generator, 80) + " "
    texts = [instruction + words(generator, 6) for _ in range(200)]
    assert jaccard(texts[0], texts[1]) > ALIKE
    assert near_groups(texts) == []


def test_equal_texts_are_left_to_the_exact_search() -> None:
    assert near_groups(["the same text it is"] * 3) == []


@given(st.lists(st.text(max_size=30), max_size=12))
@settings(deadline=None)
def test_any_texts_do(texts: list[str]) -> None:
    for group in near_groups(texts):
        assert len(group) > 1
        assert all(any(jaccard(texts[i], texts[j]) >= ALIKE for j in group if j != i) for i in group)


def test_a_huge_text_and_many_alike_ones_take_bounded_time() -> None:
    start = time.monotonic()
    near_groups(["x" * 60_000_000, "y" * 60_000_000])
    near_groups([f"the very same sentence in every row but for its number {i:05}" for i in range(5000)])
    assert time.monotonic() - start < 60


def test_who_waits_is_told() -> None:
    seen: list[tuple[int, int]] = []
    near_groups(["a text of some length", "another text of length"], lambda done, total: seen.append((done, total)))
    assert seen[-1] == (2, 2)
