"""Proves which answers are taken for refusals, cut off or repeated, and that ordinary ones are not."""

import pytest

from tunesmith.data.answers import is_refusal, is_unfinished, repeated, unfinished

REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I’m sorry, but I cannot assist with that request.",
    "As an AI language model, I do not have feelings.",
    "I cannot provide medical advice.",
    "I am an AI and do not have a body.",
    "Es tut mir leid, aber ich kann dabei nicht helfen.",
    "Als KI-Sprachmodell habe ich keine Gefühle.",
    "Je suis désolé, mais je ne peux pas vous aider.",
    "En tant qu'IA, je n'ai pas d'opinion.",
    "Lo siento, pero no puedo ayudarte con eso.",
    "Desculpe, mas não posso ajudar com isso.",
    "Mi dispiace, ma non posso aiutarti.",
    "Het spijt me, maar ik kan dat niet doen.",
    "Przykro mi, ale nie mogę pomóc.",
    "Üzgünüm, ancak yardımcı olamam.",
    "Извините, но я не могу помочь.",
    "对不起，我不能帮助你。",
    "申し訳ありませんが、お手伝いできません。",
    "죄송합니다. 도와드릴 수 없습니다.",
    "عذرًا، لا أستطيع مساعدتك",
    "मुझे खेद है, लेकिन मैं मदद नहीं कर सकता",
]
ORDINARY = [
    "Sorry to hear that! Here's how to mend it.",
    "The AI said hello.",
    "I cannot believe it is already noon.",
    "I can't wait to help you!",
    "I can help with that.",
    "Sure: as an airline pilot, you fly.",
    "Als der Zug kam, war es still.",
    "Strong in you, the Force is.",
    "",
]


@pytest.mark.parametrize("answer", REFUSALS)
def test_a_refusal_is_seen(answer: str) -> None:
    assert is_refusal(answer)


@pytest.mark.parametrize("answer", ORDINARY)
def test_an_ordinary_answer_is_none(answer: str) -> None:
    assert not is_refusal(answer)


@pytest.mark.parametrize("answer", ["It was cut off in the", "It ends with a comma here,", "The first one - and the second –"])
def test_an_answer_without_an_end(answer: str) -> None:
    assert is_unfinished(answer)


@pytest.mark.parametrize(
    "answer",
    ["A whole sentence it is.", 'They said: "so it is"', "Run it:\n```\nx = 1\n```", "It was good 🙂", "中文 的 句子 在 这里。",
     "Yes", "**bold to the end of it**", "And so on it goes…", "Trailing space it has. \n", "Paris"],
)  # fmt: skip
def test_an_answer_with_an_end_or_of_a_word(answer: str) -> None:
    assert not is_unfinished(answer)


def test_answers_are_cut_off_only_where_nearly_all_others_end() -> None:
    good, bad = "A whole sentence it is.", "It was cut off in the"
    assert unfinished([good] * 19 + [bad]) == [19]
    assert unfinished([good, bad]) == []
    assert unfinished([]) == []


def test_long_answers_to_different_questions_are_repeated_ones() -> None:
    long = "this is the very same long answer again"
    assert repeated(["a", "b", "c", "d"], [long, long, "other", long]) == [[0, 1, 3]]
    assert repeated(["a", "a", "a"], [long] * 3) == [], "one question"
    assert repeated(["a", "b", "c"], ["yes"] * 3) == [], "a label"
