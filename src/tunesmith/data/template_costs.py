"""What a template's operators, methods and filters cost: the characters they are about to make, where that can be far more
than what they are given."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2.exceptions import SecurityError

REFUSED_FILTERS = ("pprint", "urlize", "wordwrap", "xmlattr")
REFUSED_METHODS = frozenset({"encode", "to_bytes", "translate"})
"""What multiplies text in ways of its own and no chat template needs."""
MOST_NUMBER = 100_000
"""Largest number a text is padded, indented or repeated by, and a number rounded to."""
MOST_BITS = 4096
"""Of the numbers a template may compute with."""

_FIELD = re.compile(r"%[-+ #0]*(\d*|\*)\.?(\d*|\*)|\{[^{}]*(\{?)")
_WIDE = re.compile(r"%[-+ #0]*[.\d]*\d{4}|%[^a-zA-Z%]*\*|\{[^{}]*:[^{}]*\d{4}|\{[^{}]*\{")
_FIELD_CHARACTERS = 1000


def characters(value: Any, most: float = float("inf")) -> int:
    """Characters of a text, and of lists and objects all that is in them, as often as it would be written; counted no further
    than ``most``, since lists within lists can be a tower that no one could write."""
    if isinstance(value, str):
        return str.__len__(value)
    if isinstance(value, Mapping):
        value = [part for pair in value.items() for part in pair]
    total = 8
    for item in value if isinstance(value, (list, tuple)) else ():
        total += characters(item, most - total)
        if total > most:
            break
    return total


def cost_of_operator(operator: str, left: Any, right: Any) -> int:
    """What ``left operator right`` costs. Raises SecurityError for numbers beyond `MOST_BITS`."""
    if operator == "%":
        return _formatted(left, [right]) if isinstance(left, str) else 0
    if operator == "+":
        return _length(left) + _length(right)
    for one, other in ((left, right), (right, left)):
        if operator == "*" and isinstance(one, (str, list, tuple)) and isinstance(other, int):
            return _length(one) * max(other, 0)
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * max(right, 1) if operator == "**" else left.bit_length() + right.bit_length()
        if bits > MOST_BITS:
            raise SecurityError(f"it computes with numbers of {bits:,} bits")
    return 0


def cost_of_method(name: str, subject: Any, arguments: Sequence[Any], named: Mapping[str, Any]) -> int:
    """What a method of a text or number, or a filter of that name, costs beyond reading ``subject``. Raises SecurityError for a
    number that is far too large."""
    given = [*arguments, *named.values()]
    numbers = [value for value in given if isinstance(value, int)]
    if any(abs(number) > MOST_NUMBER for number in numbers):
        raise SecurityError(f"it asks {name} for {max(map(abs, numbers)):,}")
    if name in ("format", "format_map"):
        return _formatted(subject, given)
    if name == "replace" and isinstance(subject, str) and len(given) > 1:
        old, new = given[:2]
        return str.count(subject, old) * _length(new) if isinstance(old, str) else 0
    if name == "join":
        return _joined(subject, given)
    texts = max([_length(value) for value in given if isinstance(value, str)], default=0)
    widest = max([texts, *map(abs, numbers)])
    if name in ("indent", "expandtabs"):
        return (1 + (str.count(subject, "\n") + str.count(subject, "\t") if isinstance(subject, str) else 0)) * max(widest, 8)
    if name == "tojson":
        return _written_as_json(subject, max(numbers, default=0))
    return widest if name in ("center", "ljust", "rjust", "zfill", "batch", "slice") else 0


def _joined(subject: Any, given: Sequence[Any]) -> int:
    """Of ``'-'.join(items)``, or of the filter, whose subject are the items."""
    items, mark = (given[0], subject) if isinstance(subject, str) and given else (subject, given[0] if given else "")
    if not isinstance(items, (list, tuple, str)):
        return 0
    return len(items) * _length(mark) + (sum(map(_length, items)) if not isinstance(items, str) else 0)


def _written_as_json(value: Any, indent: int) -> int:
    """Indentation of each line is as deep as what it stands in."""
    if not indent:
        return 0
    if indent > 16:
        raise SecurityError(f"it indents JSON by {indent}")
    return _indented(value, 1) * indent


def _indented(value: Any, depth: int) -> int:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return depth + sum(_indented(item, depth + 1) for item in value)
    return depth


def _formatted(text: Any, arguments: Sequence[Any]) -> int:
    """At most so much comes out of ``text % arguments`` or ``text.format(arguments)``. Raises SecurityError for wide fields."""
    if not isinstance(text, str):
        return 0
    if _WIDE.search(text):
        raise SecurityError("it formats text with a field of a thousand characters or more")
    values = [value for argument in arguments for value in (argument if isinstance(argument, (tuple, list)) else [argument])]
    longest = max([characters(value) for value in values], default=0)
    return len(text) + len(_FIELD.findall(text)) * (_FIELD_CHARACTERS + longest)


def _length(value: Any) -> int:
    """Of a text, or of a list; a text that is being traced is not asked."""
    if isinstance(value, str):
        return str.__len__(value)
    return len(value) if isinstance(value, (list, tuple)) else 0
