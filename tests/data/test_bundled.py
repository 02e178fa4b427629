"""Proves that the bundled Yoda data is clean: every answer is its question in another order, and no test row is in training."""

import json
import re
from collections import Counter

import pytest

from tunesmith.data.sources import BUNDLED

INTERJECTIONS = {"Hmm.", "Herh herh.", "Hrrmmm.", "Yeesss.", "Yes, hrrrm."}
ROWS = {
    f"{split} line {number}": json.loads(line)
    for split in ("train", "test")
    for number, line in enumerate((BUNDLED / "yoda" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines(), 1)
}


def _words(text: str) -> list[str]:
    return re.findall(r"\w+(?:['’-]\w+)*", text.lower())


def _offenders(wrong) -> list[str]:
    return [
        f"{where}: {row}" for where, row in ROWS.items() if wrong(row["sentence"], row["translation"], row["translation_extra"])
    ]


def test_there_are_enough_rows_and_eighty_to_test_on():
    assert len(ROWS) >= 800
    assert sum(where.startswith("test") for where in ROWS) == 80


def test_every_row_has_the_three_columns_and_text_in_them():
    columns = {"sentence", "translation", "translation_extra"}
    assert [where for where, row in ROWS.items() if set(row) != columns or not all(text.strip() for text in row.values())] == []


@pytest.mark.parametrize("column", ["sentence", "translation"])
def test_no_text_stands_twice_in_or_across_the_splits(column):
    counts = Counter(" ".join(_words(row[column])) for row in ROWS.values())
    assert [text for text, count in counts.items() if count > 1] == []


def test_a_translation_has_the_words_of_its_sentence():
    assert _offenders(lambda sentence, translation, _: Counter(_words(sentence)) != Counter(_words(translation))) == []


def test_a_translation_has_them_in_another_order():
    assert _offenders(lambda sentence, translation, _: _words(sentence) == _words(translation)) == []


def test_both_end_with_the_same_mark():
    assert _offenders(lambda sentence, translation, _: sentence[-1] not in ".?!" or sentence[-1] != translation[-1]) == []


def test_both_begin_with_a_capital():
    assert _offenders(lambda sentence, translation, _: not (sentence[0].isupper() and translation[0].isupper())) == []


def test_a_translation_has_a_comma():
    assert _offenders(lambda _, translation, __: "," not in translation) == []


def test_the_extra_text_is_at_most_one_known_interjection():
    def wrong(_: str, translation: str, extra: str) -> bool:
        return extra != translation and extra not in {f"{translation} {interjection}" for interjection in INTERJECTIONS}

    assert _offenders(wrong) == []


def test_every_interjection_is_taught():
    taught = {row["translation_extra"].removeprefix(row["translation"]).strip() for row in ROWS.values()}
    assert taught == {"", *INTERJECTIONS}


def test_spaces_are_single_and_never_at_an_end():
    assert _offenders(lambda *texts: any(text != " ".join(text.split()) for text in texts)) == []


def test_no_space_stands_before_a_mark():
    assert _offenders(lambda *texts: any(re.search(r"\s[,.?!;:]", text) for text in texts)) == []
