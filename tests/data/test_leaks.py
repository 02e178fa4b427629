"""Proves that a held-out row that is trained on is found, once, in its gravest form."""

from tunesmith.data.leaks import find_leaks

TRAINED = [
    ("where is the dog?", "here."),
    ("what is the name of the long river behind the old town?", "the rhine."),
    ("", "a text"),
]


def test_the_same_conversation_the_same_question_and_nearly_the_same_one() -> None:
    held_out = [
        ("where is the dog?", "here."),
        ("where is the dog?", "there."),
        ("what is the name of the long river behind the old town, then?", "the rhine."),
        ("who are you?", "nobody."),
    ]
    leaks = find_leaks(TRAINED, held_out)
    assert leaks.same == ((0, 0),)
    assert leaks.asked == ((1, 0),)
    assert leaks.near == ((2, 1),)


def test_plain_texts_ask_nothing_and_leak_only_when_equal() -> None:
    leaks = find_leaks(TRAINED, [("", "a text"), ("", "another text")])
    assert leaks.same == ((0, 2),)
    assert leaks.asked == ()
    assert leaks.near == ()


def test_nothing_leaks_into_or_from_nothing() -> None:
    assert find_leaks(TRAINED, []) == find_leaks([], []) == find_leaks([], TRAINED[:0])
    assert find_leaks([], TRAINED).same == ()
