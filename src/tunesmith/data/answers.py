"""Answers one would not want learnt: refusals, missing ones, ones that stop in mid-sentence, one answer to many questions."""

import re
from collections.abc import Sequence

LOOKED_AT = 400
"""Characters of an answer in which a refusal is looked for: it comes first."""

_REFUSALS = (
    # English
    ("sorry", r"\b(i am|i'm|im) (very |so )?sorry,? (but )?(i|as an)\b.{0,20}(can't|cannot|can not|unable|not able|won't|ai)"),
    ("i ", r"\bi (can't|cannot|can not|won't|am unable to|am not able to|must decline to) "
           r"(help|assist|provide|fulfill|fulfil|comply|create|generate|answer|engage|discuss|support|do that)"),
    ("i'm ", r"\bi'm (not able|unable) to (help|assist|provide|comply|create|generate|answer|engage|discuss)"),
    ("as a", r"\bas an? (ai|artificial intelligence|large language model|language model)\b"),
    ("i am ", r"\bi am (just |only )?an? (ai|language model|artificial intelligence)\b"),
    ("i'm ", r"\bi'm (just |only )?an? (ai|language model)\b"),
    ("my ", r"\bmy (knowledge|training data)( was)? (cutoff|cut off|cut-off)"),
    ("as of my last", r"\bas of my last (knowledge )?update\b"),
    # German
    ("leid", r"\b(es )?tut mir (sehr )?leid,? (aber |doch )?ich (kann|darf|bin nicht)"),
    ("als ", r"\bals (ein |eine )?(ki\b|ki-|sprachmodell|künstliche intelligenz)"),
    ("ich kann ", r"\bich kann (dir|ihnen|euch)? ?(dabei|damit|hierbei) (leider )?nicht (helfen|weiterhelfen|behilflich)"),
    # French
    ("je ", r"\bje (suis (vraiment )?désolée?|m'excuse),? (mais )?je (ne|n')"),
    ("en tant ", r"\ben tant qu(e|')\s?(ia\b|modèle|intelligence artificielle|assistant)"),
    ("je ne ", r"\bje ne (peux|puis) (pas|malheureusement)( vous| t')? ?(aider|répondre|fournir|satisfaire)"),
    # Spanish
    ("lo siento", r"\blo siento,? (pero )?no (puedo|me es posible)"),
    ("como ", r"\bcomo (un |una )?(modelo de lenguaje|inteligencia artificial|ia\b)"),
    ("no puedo ", r"\bno puedo (ayudarte|ayudarle|ayudar|cumplir|proporcionar)"),
    # Portuguese, Italian
    ("não posso", r"\b(desculpe|sinto muito|lamento),? (mas )?(eu )?não posso"),
    ("como ", r"\bcomo (um |uma )?(modelo de linguagem|inteligência artificial)"),
    ("non posso", r"\b(mi dispiace|spiacente),? (ma )?non posso"),
    ("linguistico", r"\b(come|in quanto) (un )?modello linguistico"),
    ("intelligenza", r"\b(come|in quanto) (un')?\s?intelligenza artificiale"),
    # Dutch, Polish, Turkish
    ("spijt me", r"\b(het )?spijt me,? (maar )?ik kan"),
    ("als ", r"\bals (een )?(taalmodel|ai\b|ai-)"),
    ("nie mogę", r"\bprzykro mi,? (ale )?nie mogę"),
    ("jako ", r"\bjako (model językowy|sztuczna inteligencja)"),
    ("üzgünüm", r"\büzgünüm,? (ama|ancak|fakat)"),
    ("olarak", r"\bbir (yapay zeka|dil modeli)"),
    # Russian
    ("я не ", r"(извините|простите|к сожалению),? (но )?я не (могу|в состоянии)"),
    ("как ", r"\bкак (большая |)?(языковая модель|искусственный интеллект|ии\b)"),
    # Chinese, Japanese, Korean
    ("歉", r"抱歉.{0,12}(不能|无法|無法)"),
    ("不起", r"(对|對)不起.{0,12}(不能|无法|無法)"),
    ("作为", r"作为(一个|一名|一款)?\s?(ai|人工智能|大?语言模型)"),
    ("申し訳", r"申し訳.{0,20}(できません|できかねます|お答えでき)"),
    ("として", r"(ai|人工知能|言語モデル)として"),
    ("죄송", r"죄송.{0,30}(수 없|어렵|않습니다)"),
    ("로서", r"(ai|인공지능|언어 모델)(로서|으로서)"),
    # Arabic, Hindi
    ("لا ", r"(عذر[اًا]*|آسف|للأسف).{0,12}لا (أستطيع|يمكنني)"),
    ("نموذج", r"(كنموذج لغ|بصفتي نموذج)"),
    ("खेद", r"मुझे खेद है.{0,40}(नहीं|असमर्थ)"),
)  # fmt: skip
"""Words a refusal must hold, which are quickly looked for, and how it then reads."""
_PATTERNS = tuple((needle, re.compile(pattern, re.DOTALL)) for needle, pattern in _REFUSALS)
_ASCII_PATTERNS = tuple((needle, pattern) for needle, pattern in _PATTERNS if needle.isascii())

_ENDED = re.compile(r"[^\w\s,;\-–—‐…(]\s*$|[.。]{3}\s*$|…\s*$")
"""An answer that ends: with a mark, a bracket, a quote, an emoji; not with a letter, a digit, a comma or a dash."""


MISSING = frozenset(("NaN", "nan", "NULL", "null", "None", "<NA>", "#N/A", "undefined", "[object Object]"))
"""What programs write where there was nothing."""


def is_missing(answer: str) -> bool:
    """Whether it is what a program writes for nothing."""
    return len(answer) < 20 and answer.strip() in MISSING


def is_refusal(answer: str) -> bool:
    """Whether it reads like an assistant declining or naming itself an AI, in one of fifteen languages."""
    text = answer[:LOOKED_AT].casefold().replace("’", "'")
    patterns = _ASCII_PATTERNS if text.isascii() else _PATTERNS
    likely = [pattern for needle, pattern in patterns if needle in text]
    return any(pattern.search(text) for pattern in likely)


def is_unfinished(answer: str) -> bool:
    """Whether several words end without a mark that ends a sentence."""
    return len(answer.split(maxsplit=3)) > 3 and not _ENDED.search(answer[-20:])


def unfinished(answers: Sequence[str]) -> list[int]:
    """Indices of answers that seem cut off, if nine in ten of those with several words do end with a mark; else none."""
    several = [i for i, answer in enumerate(answers) if len(answer.split(maxsplit=3)) > 3]
    found = [i for i in several if is_unfinished(answers[i])]
    return found if len(found) <= 0.1 * len(several) else []


def repeated(asked: Sequence[str], answers: Sequence[str], least: int = 3, words: int = 6) -> list[list[int]]:
    """Indices of equal answers of at least ``words`` words to at least ``least`` different questions, most first.

    Short ones are left out: labels, yes and no are given to many questions on purpose.
    """
    together: dict[str, dict[str, int]] = {}
    for index, (question, answer) in enumerate(zip(asked, answers)):
        if len(answer.split(maxsplit=words)) >= words:
            together.setdefault(answer, {}).setdefault(question, index)
    groups = [list(questions.values()) for questions in together.values() if len(questions) >= least]
    return sorted(groups, key=len, reverse=True)
