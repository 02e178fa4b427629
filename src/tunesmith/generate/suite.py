"""Small fixed suites of questions any chat model may be asked, to see whether tuning cost it something it could do before.

They were written for this project. Answers are judged by what can be extracted from them, not by their wording: the
constraints of ``instructions`` are checked by program, as in IFEval (Zhou et al., arXiv:2311.07911).
"""

import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

SUITES = {"facts": 24, "arithmetic": 32, "json": 48, "instructions": 32}
"""The suites, and how many tokens an answer may have."""
_FOLDER = Path(__file__).parent / "suites"
_NUMBER = re.compile(r"(?<![0-9.])[-−]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?")
_TYPES: dict[str, tuple[type, ...]] = {"string": (str,), "number": (int, float), "boolean": (bool,)}


@dataclass(frozen=True)
class Item:
    """suite: the name of its suite. ask: the question. check, wanted: how an answer is judged, see `CHECKS`, and by what."""

    suite: str
    ask: str
    check: str
    wanted: Any

    def is_right(self, answer: str) -> bool:
        return CHECKS[self.check](answer, self.wanted)


def load_items() -> list[Item]:
    """All items, suite by suite."""
    rows = [(suite, row) for suite in SUITES for row in _rows(suite)]
    return [Item(suite, row["ask"], check, row[check]) for suite, row in rows for check in CHECKS if check in row]


def general_texts() -> list[str]:
    """Paragraphs of plain prose on which perplexity is measured."""
    return [row["text"] for row in _rows("text")]


def _rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (_FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def says(answer: str, accepted: list[str]) -> bool:
    """Whether one of the accepted phrases stands in the answer, as whole words and not denied by a ``not`` before it."""
    text = f" {_words(answer)} "
    return any(f" {_words(phrase)} " in text and f" not {_words(phrase)} " not in text for phrase in accepted)


def _words(text: str) -> str:
    """Words with single blanks between them, without case, accents and punctuation."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))
    return " ".join(re.findall(r"\w+", plain))


def final_number(answer: str) -> Decimal | None:
    """The number an answer comes to: the first after its last equals sign, or else the last one in it."""
    calculation, equals, result = answer.rpartition("=")
    if equals and (found := _NUMBER.search(result)):
        return _decimal(found[0])
    numbers = _NUMBER.findall(calculation + result)
    return _decimal(numbers[-1]) if numbers else None


def _decimal(text: str) -> Decimal:
    return Decimal(text.replace(",", "").replace("−", "-"))


def first_json(answer: str) -> Any:
    """The first JSON object or array in an answer, whatever stands around it; None if there is none, or it is not valid."""
    begin = re.search(r"[{\[]", answer)
    if begin is None:
        return None
    try:
        return json.JSONDecoder(parse_constant=_refuse).raw_decode(answer, begin.start())[0]
    except (ValueError, RecursionError):
        return None


def _refuse(constant: str) -> None:
    """NaN and infinities, which Python reads and JSON does not know."""
    raise ValueError(constant)


def has_shape(value: Any, shape: Any) -> bool:
    """Whether a JSON value has a shape: a type's name, an object's keys with their shapes, or ``[shape]`` for an array of at
    least one such value."""
    if isinstance(shape, Mapping):
        return isinstance(value, dict) and all(key in value and has_shape(value[key], part) for key, part in shape.items())
    if isinstance(shape, list):
        return isinstance(value, list) and bool(value) and all(has_shape(part, shape[0]) for part in value)
    return isinstance(value, _TYPES[shape]) and (shape == "boolean" or not isinstance(value, bool))


def follows(answer: str, constraints: Mapping[str, Any]) -> bool:
    """Whether an answer, not empty, keeps to every constraint."""
    answer = answer.strip()
    return bool(answer) and all(_CONSTRAINTS[name](answer, wanted) for name, wanted in constraints.items())


def _without(answer: str, words: list[str]) -> bool:
    return not any(f" {_words(word)} " in f" {_words(answer)} " for word in words)


_CONSTRAINTS: dict[str, Callable[[str, Any], bool]] = {
    "only": lambda answer, texts: _words(answer) in map(_words, texts),
    "starts": lambda answer, text: answer.startswith(text),
    "ends": lambda answer, text: answer.rstrip("\"'”’ ").endswith(text),
    "contains": lambda answer, texts: all(text in answer or text in answer.casefold() for text in texts),
    "without": _without,
    "case": lambda answer, case: answer.isupper() if case == "upper" else answer.islower(),
    "most words": lambda answer, most: 0 < len(_words(answer).split()) <= most,
    "least lines": lambda answer, least: sum(bool(line.strip()) for line in answer.splitlines()) >= least,
}
CHECKS: dict[str, Callable[[str, Any], bool]] = {
    "says": says,
    "number": lambda answer, number: final_number(answer) == number,
    "json": lambda answer, shape: has_shape(first_json(answer), shape),
    "follows": follows,
}
