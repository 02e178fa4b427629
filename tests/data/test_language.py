"""Proves that languages are told apart where the text says enough, and that nothing is claimed where it does not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.language import FUNCTION_WORDS, languages, odd_ones

SENTENCES = {
    "English": "The wind is cold in the camp, and they walked across the bridge at midnight.",
    "German": "Die Katze sitzt auf dem Tisch und schläft, wenn es nicht regnet.",
    "French": "Je ne sais pas où il est allé hier soir avec les enfants.",
    "Spanish": "El perro come en la cocina con los niños cuando hay pan.",
    "Portuguese": "O cachorro não está na casa dos meus pais, mas eu também não.",
    "Italian": "Il gatto è sul tavolo e non si muove, anche se è della vicina.",
    "Dutch": "De kat zit op het dak en wil niet naar beneden.",
    "Swedish": "Jag vet inte var han är i dag, men det är bra för mig.",
    "Danish or Norwegian": "Jeg ved ikke hvor han er, men det er godt for os.",
    "Polish": "Nie wiem, gdzie on jest, ale to jest dobre i już się skończyło.",
    "Turkish": "Bu çok güzel bir gün ve ben daha iyi değil gibi.",
    "Vietnamese": "Tôi không biết anh ấy ở đâu nhưng đó là một điều tốt.",
    "Russian": "Я не знаю, где он, но это хорошо.",
    "Ukrainian": "Я не знаю, де він, але це дуже добре, що він є.",
    "Arabic": "لا أعرف أين هو ولكن هذا جيد في كل الأحوال",
    "Chinese": "我不知道他在哪里。",
    "Japanese": "彼がどこにいるか知りません。",
    "Korean": "그가 어디 있는지 모르겠어요.",
    "Greek": "Δεν ξέρω πού είναι.",
    "Hebrew": "אני לא יודע איפה הוא",
    "Thai": "ฉันไม่รู้ว่าเขาอยู่ที่ไหน",
    "Devanagari": "मुझे नहीं पता कि वह कहाँ है।",
}
SILENT = ["", "42", "🙂🙂", "Paris, London, Berlin, Madrid", "for i in range(10):\n    print(i * x)", "a@b.org", "OK"]


@pytest.mark.parametrize(("name", "text"), SENTENCES.items())
def test_a_sentence_is_known(name: str, text: str) -> None:
    assert languages([text])[0] == name


@pytest.mark.parametrize("text", SILENT)
def test_what_says_too_little_has_no_language(text: str) -> None:
    assert languages([text])[0] == ""


def test_decomposed_letters_make_no_difference() -> None:
    import unicodedata

    for name in ("French", "Vietnamese"):
        assert languages([unicodedata.normalize("NFD", SENTENCES[name])])[0] == name


def test_a_script_is_known_where_its_words_are_not() -> None:
    assert languages(["Сәлем, қалайсыз?"])[0] == "Cyrillic script"


def test_the_odd_ones_are_those_unlike_nine_tenths() -> None:
    texts = [SENTENCES["English"]] * 30 + [SENTENCES["German"], SENTENCES["Korean"], *SILENT]
    counts, odd = odd_ones(texts)
    assert counts == {"English": 30, "German": 1, "Korean": 1}
    assert odd == {30: "German", 31: "Korean"}


def test_a_mixture_has_no_odd_ones() -> None:
    counts, odd = odd_ones([SENTENCES["English"]] * 6 + [SENTENCES["French"]] * 4)
    assert counts == {"English": 6, "French": 4}
    assert odd == {}


def test_a_script_alone_is_no_departure_from_a_language_written_in_it() -> None:
    _, odd = odd_ones([SENTENCES["Russian"]] * 20 + ["Москва, Тула"])
    assert odd == {}


def test_no_texts_and_silent_texts_are_no_mixture() -> None:
    assert odd_ones([]) == odd_ones(SILENT) == ({}, {})


@given(st.text())
def test_any_text_has_an_answer(text: str) -> None:
    assert isinstance(languages([text])[0], str)


def test_every_language_can_reach_its_own_threshold() -> None:
    """All function words of a language together are that language."""
    for name, words in FUNCTION_WORDS.items():
        assert languages([" ".join(words.split()[:40])])[0] == name
