"""YAML from outside: plain values only, and never more of them than a person would write."""

from typing import Any

import yaml

LONGEST = 2**20
"""Characters of a settings file."""
MOST_VALUES = 20_000
"""Counted as often as they would be written: a few lines of aliases can stand for billions."""


def read_yaml(text: str) -> Any:
    """What a YAML text says. Raises ValueError, with the reason."""
    if len(text) > LONGEST:
        raise ValueError(f"it has {len(text):,} characters, more than {LONGEST:,}")
    if max(text.count("["), text.count("{"), text.count("- -")) > 1000:  # nested, they would be read for minutes
        raise ValueError("it is nested too deeply")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:  # 2026-02-31 is a ValueError
        raise ValueError(" ".join(str(error).split())) from error
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if _count(value, MOST_VALUES, 0) > MOST_VALUES:
        raise ValueError("its aliases stand for too many values")
    return value


def _count(value: Any, most: int, depth: int) -> int:
    """Values within, counted no further than ``most``."""
    if depth > 50:
        return most + 1
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    total = 1
    for item in value if isinstance(value, (list, tuple, set)) else ():
        total += _count(item, most - total, depth + 1)
        if total > most:
            break
    return total
