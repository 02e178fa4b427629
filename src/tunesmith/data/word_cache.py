"""Tokens of ASCII texts word by word, each word tokenised once.

A byte-level vocabulary splits a text into words by a regular expression and works on each word alone, so the tokens of a text
are those of its words, one after another. However long a data set is, it has few different words: what is left to do for most
texts is to find them. For ASCII, Python's own `re` finds the same ones; any other text is for the tokenizer.
"""

import json
import random
import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

MOST, LONGEST = 2**18, 64
"""Words kept, and the characters of the longest; all are forgotten when there are more."""
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The expression that byte-level tokenizers use if they name none."""
ASCII = {r"\p{L}": "A-Za-z", r"\p{N}": "0-9"}
PROBES = 300


class WordCache:
    """Tokenises ASCII texts that hold no added token, by their words; the plain twin is the tokenizer.

    Args:
        words: what finds them. apart: what a text is cut at before, if anything.
    """

    def __init__(self, backend: Any, words: re.Pattern[str], apart: re.Pattern[str] | None) -> None:
        self._backend, self._words, self._apart = backend, words, apart
        self._known: dict[str, list[int]] = {}

    @staticmethod
    def of(backend: Any) -> "WordCache | None":
        """For a tokenizer of the library tokenizers; None if it does more than split into words, or splits in another way."""
        found = _expressions(json.loads(backend.to_str()))
        if found is None:
            return None
        made, probes = WordCache(backend, *found), _probes()
        plain = [one.ids for one in backend.encode_batch_fast(probes, add_special_tokens=False)]
        return made if made.encode(probes) == plain else None

    def encode(self, texts: Sequence[str]) -> list[list[int]] | None:
        """The tokens of each text; None where words are not all there is to them."""
        split = [self._find(text) for text in texts]
        if [sum(map(len, words)) for words in split] != [len(text) for text in texts]:
            return None  # something between two words
        if len(self._known) > MOST:
            self._known = {}
        known = self._known  # another thread may begin a new one
        if new := [word for word in set(chain.from_iterable(split)) if word not in known]:
            if any(len(word) > LONGEST or self._find(word) != [word] for word in new):
                return None
            known.update(zip(new, [one.ids for one in self._backend.encode_batch_fast(new, add_special_tokens=False)]))
        return [list(chain.from_iterable(map(known.__getitem__, words))) for words in split]

    def _find(self, text: str) -> list[str]:
        if self._apart is None or not self._apart.search(text):
            return self._words.findall(text)
        return list(chain.from_iterable(map(self._words.findall, self._apart.split(text))))


def _expressions(state: dict[str, Any]) -> tuple[re.Pattern[str], re.Pattern[str] | None] | None:
    """What finds the words of an ASCII text as the tokenizer splits it, and what it is cut at before; None if that is not known."""
    normalizer, steps = state["normalizer"] or {"type": "NFC"}, state["pre_tokenizer"] or {"type": "none"}
    steps = steps["pretokenizers"] if steps["type"] == "Sequence" else [steps]
    last = steps[-1] if steps else {"type": "none"}
    if normalizer["type"] not in ("NFC", "NFD", "NFKC", "NFKD") or last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return None  # anything else may change ASCII text, or put a space before it
    if state["model"].get("dropout"):
        return None
    patterns = [*map(_pattern, steps[:-1]), *([GPT2] if last["use_regex"] else [])]
    found = [_in_ascii(pattern) if pattern else None for pattern in patterns]
    match found:
        case [re.Pattern() as words]:
            return words, None
        case [re.Pattern() as apart, re.Pattern() as words]:
            return words, re.compile(f"({apart.pattern})", re.ASCII)
    return None


def _pattern(step: dict[str, Any]) -> str:
    """What a step cuts a text at, keeping what it finds as a piece of its own; nothing if it does anything else."""
    if step["type"] == "Digits":
        return r"\p{N}" if step["individual_digits"] else r"\p{N}+"
    isolates = step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]
    return str(step["pattern"].get("Regex", "")) if isolates else ""


def _in_ascii(pattern: str) -> re.Pattern[str] | None:
    """The expression for ASCII texts, where a letter is one of 52; None if Python has nothing like it."""
    parts, inside = [], False
    for part in re.findall(r"\\p\{\w+\}|\\.|.", pattern, re.DOTALL):
        inside = (inside or part == "[") and part != "]"
        found = ASCII.get(part)
        parts.append(part if found is None else found if inside else f"[{found}]")
    try:
        made = re.compile("".join(parts), re.ASCII)
    except re.error:
        return None
    return None if made.groups or not pattern or "[[" in pattern or "&&" in pattern else made


def _probes() -> list[str]:
    """Texts of all that words may begin and end with."""
    draw = random.Random(0)
    pieces = [
        *map(chr, range(128)),
        "word",
        "Word",
        "WORD",
        "12",
        "1234",
        "  ",
        "   ",
        "\n\n",
        "\r\n",
        " \n",
        "'s",
        "'LL",
        "'re ",
        "..",
        " (",
    ]
    return ["".join(draw.choices(pieces, k=draw.randint(1, 12))) for _ in range(PROBES)]
