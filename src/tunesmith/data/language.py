"""In which language a text is written, as far as its script and its commonest words say; nothing is downloaded or guessed.

A script (Greek, Hangul, Thai, …) is read off the letters' Unicode names and is always seen. Languages that share the Latin,
Cyrillic or Arabic script are told apart by function words such as *the*, *der* or *que*, which make up a third of ordinary
prose in any language. So a text of a few words, a list of names or a piece of code has no language here, and a language
without a line in the table below is only known by its script. What is unknown is never called foreign.
"""

import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

UNKNOWN = ""
ENOUGH, CLEARLY = 2.0, 1.6
"""Different function words a language must have, and how many times as many as the next one. A word that n languages
share counts 1/n for each."""
LOOKED_AT = 400
"""Characters of a text that are read: a paragraph says as much as a book."""

FUNCTION_WORDS = {
    "English": "the and of to is that it was for with as his her they this have from by not but what all were when we there "
    "can an your which their if will do how about would you are be my on at then has been she "
    "he him her had its our them who me or up out so no into over after could would should more "
    "should more some than these those i",
    "German": "der die das und ist nicht ich sie es ein eine einen den dem des mit auf für von zu sich auch wie aus bei nach "
    "wird sind war haben hat oder aber wenn werden kann noch nur dass zum zur im wir ihr",
    "French": "le la les des et est une un que qui dans pour pas sur au avec ce il elle sont par plus mais nous vous je ne se "
    "cette ou aux ces leur être ont fait comme tout du c'est d'un d'une qu'il",
    "Spanish": "el la los las de que y en un una es por con no para su se lo como más pero sus le ya o este sí porque esta "
    "entre cuando muy sin sobre también me hay donde quien desde del al son está",
    "Portuguese": "o a os as que e do da em um uma é por com não para seu sua se no na dos das mais mas como ao ele ela ou "
    "muito nos já está eu também só pelo pela até isso entre são você",
    "Italian": "il lo la gli le di che e è un una in per non con si da come del della dei delle nel nella sono al alla più ma "
    "anche ha questo questa o ci se essere dal su",
    "Dutch": "de het een en van ik te dat die in is niet zijn op aan met als voor er maar om hij dan zou of wat mijn men dit zo "
    "door over ze zich bij ook tot je mij uit der naar heeft hebben wordt worden deze",
    "Swedish": "och att det i en jag hon som han på den med var sig för så till är men ett om hade de av icke mig du henne då "
    "inte från ut när ha där eller vid också kan man efter",
    "Danish or Norwegian": "og i jeg det at en den til er som på de med han av af for ikke der var mig sig men et har om vi min "
    "havde ham hun nu over da fra du ud dem os ble kan vil også eller hva hvad når skal meg seg deg å",
    "Finnish": "ja on ei se että hän oli minä mutta niin kun hänen mitä kuin myös ovat tai joka siitä sen vain jos olen olla "
    "sitä nyt tämä ole voi mukaan jotka",
    "Polish": "i w nie na się z do jest że to jak co po ale od o za już tylko jego jej był może przez przy który która które "
    "być dla są oraz tym tego czy ich",
    "Czech": "a v se na je že s z do o to i jako za by ale jsem si ve jsou jak pro není byl po při nebo jeho který která "
    "které také bylo než jen už být",
    "Hungarian": "a az és hogy nem is egy ez van volt meg csak azt de ha mint már még vagy ki ezt kell lesz mert minden ő "
    "nagyon akkor itt ami",
    "Romanian": "și de la a în nu cu pe că este o un se mai din ce pentru sunt au care fi să ca lui dar ei sau această acest "
    "cum fost prin unui unei",
    "Turkish": "ve bir bu da de için ne o ile ben çok daha gibi var mi değil ama olan olarak kadar sonra her şey ki ya "
    "sen biz onu bunu nasıl",
    "Indonesian or Malay": "yang dan di itu dengan untuk tidak ini dari dalam akan pada juga saya ke karena ada tersebut bisa "
    "mereka kita anda adalah atau seperti oleh sebagai kami dia lebih",
    "Vietnamese": "và của là có không được cho một người trong những với các này để khi đã về như từ ở ra tôi bạn nhưng đến "
    "rất cũng hay sẽ",
    "Russian": "и в не на я что он с как это по но она к у из мы за то так для от же вы был его все или есть только ещё "
    "когда если бы может чтобы при уже их также",
    "Ukrainian": "і в не на я що він з як це та але вона до у із ми за то так для від ж ви був його всі або є тільки ще "
    "коли якщо би може щоб при вже їх також й",
    "Bulgarian": "и в не на аз че той с как това по но тя към у от ние за то така със ви беше го всички или е само още "
    "когато ако би може да при вече се са като",
    "Arabic": "في من على إلى أن هذا التي الذي لا ما هو هي كان عن مع أو كل هذه قد لم بين ذلك عند بعد إن كما لكن",
    "Persian": "در از به که را این با است برای آن یک خود تا بر هم می شود او ما شده هر نیز اما یا باید کرد بود",
}  # fmt: skip

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_ASCII_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
_SCRIPTS = {
    "LATIN": "Latin", "CYRILLIC": "Cyrillic", "ARABIC": "Arabic", "GREEK": "Greek", "HEBREW": "Hebrew", "CJK": "Chinese",
    "HIRAGANA": "Japanese", "KATAKANA": "Japanese", "HANGUL": "Korean", "DEVANAGARI": "Devanagari",
}  # fmt: skip
_SHARED = ("Latin", "Cyrillic", "Arabic")
"""Scripts that many languages write in: by themselves they name none."""


LANGUAGES = tuple(FUNCTION_WORDS)
SHARES = 2520
"""Parts of a word: so many that up to ten languages share it in whole ones, and sums are the same in any order."""
TOGETHER = 8192
"""Texts scored at once."""


def _weights() -> tuple[dict[str, int], Floats]:
    """Function words, numbered, and how many `SHARES` each counts for every language, float64 ``[words, languages]``."""
    of_words: dict[str, list[int]] = {}
    for number, words in enumerate(FUNCTION_WORDS.values()):
        for word in set(words.split()):
            of_words.setdefault(word, []).append(number)
    weights = np.zeros((len(of_words) + 1, len(LANGUAGES)))  # the last row: of no word
    for row, languages in enumerate(of_words.values()):
        weights[row, languages] = SHARES / len(languages)
    return {word: row for row, word in enumerate(of_words)}, weights


_NUMBERS, _WEIGHTS = _weights()


def languages(texts: Sequence[str]) -> list[str]:
    """Of each text the language's English name, a script's name (``Cyrillic script``) where the words say no more, or an empty
    string."""
    named: list[str] = []
    for start in range(0, len(texts), TOGETHER):
        some = [unicodedata.normalize("NFC", text[:LOOKED_AT]) for text in texts[start : start + TOGETHER]]
        scripts = ["Latin" if text.isascii() else _script(text) for text in some]
        by_words = _by_words(some)
        named += [
            (name or ("" if script == "Latin" else f"{script} script")) if script in _SHARED else script
            for name, script in zip(by_words, scripts)
        ]
    return named


def _by_words(texts: Sequence[str]) -> list[str]:
    """The language whose function words a text has clearly most of, or nothing."""
    rows, starts = array("q"), array("q")
    known, number = _NUMBERS.keys(), _NUMBERS.__getitem__
    for text in texts:
        starts.append(len(rows))
        rows.append(-1)
        words = _ASCII_WORD.findall(text.lower()) if text.isascii() else _WORD.findall(text.casefold().replace("’", "'"))
        rows.extend(map(number, known & words))
    scores = np.add.reduceat(_WEIGHTS[np.frombuffer(rows, np.int64)], np.frombuffer(starts, np.int64))
    second, best = np.partition(scores, -2)[:, -2:].T
    clear = (best >= ENOUGH * SHARES) & (best >= CLEARLY * second)
    return [LANGUAGES[i] if sure else UNKNOWN for i, sure in zip(scores.argmax(1).tolist(), clear.tolist())]


def _script(text: str) -> str:
    """The script of most letters. Kana decide for Japanese, which writes Chinese characters between them."""
    counts = Counter(script for character in text if (script := _script_of(character)))
    if not counts:
        return UNKNOWN
    if counts["Japanese"] * 10 >= counts["Chinese"] and counts["Japanese"]:
        counts["Japanese"] += counts.pop("Chinese", 0)
    return counts.most_common(1)[0][0]


@cache
def _script_of(character: str) -> str:
    if not character.isalpha():
        return UNKNOWN
    word = unicodedata.name(character, "").split(" ")[0].split("-")[0]
    return _SCRIPTS.get(word, word.capitalize())


def odd_ones(texts: Sequence[str]) -> tuple[dict[str, int], dict[int, str]]:
    """How many texts are in which language (unknown ones left out), and those whose language is not that of most.

    A script alone (``Cyrillic script``) is no departure from a language written in it. Where no language has nine tenths of
    the texts the data are a mixture, and none is odd.
    """
    found = languages(texts)
    counts = Counter(name for name in found if name)
    known = sum(counts.values())
    if not known:
        return {}, {}
    main, most = counts.most_common(1)[0]
    if most < 0.9 * known:
        return dict(counts.most_common()), {}
    odd = {i: name for i, name in enumerate(found) if name and name != main and not _written_in(main, name)}
    return dict(counts.most_common()), odd


def _written_in(main: str, other: str) -> bool:
    """Whether ``other`` is only a script, and ``main`` is that script or written in it."""
    if not other.endswith(" script"):
        return False
    script = other.removesuffix(" script")
    return script == _script(FUNCTION_WORDS.get(main, main))
