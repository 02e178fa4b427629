"""One data set of a mixture, as a recipe names it."""

from collections.abc import Mapping, Sequence
from os.path import expanduser, realpath
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from tunesmith.errors import RecipeError, did_you_mean, near

DataFormat = Literal["auto", "messages", "sharegpt", "prompt_completion", "alpaca", "text"]

COLUMNS = ("messages", "prompt", "completion", "system", "text", "tools")
"""What columns an entry names, as the recipe does of a data set that stands alone."""
ENTRY_KEYS = {"dataset_format": "type", "dataset_split": "split", "dataset_config": "subset", **{name: name for name in COLUMNS}}
"""Settings that say how one data set is read, and the keys of an entry that say the same."""


class MixedData(BaseModel):
    """One data set of a mixture: an entry of `Recipe.datasets`. Keys mean what they mean in the recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    path: str
    type: DataFormat = "auto"
    split: str | None = None
    subset: str | None = None
    weight: float = Field(1.0, gt=0, le=1000)
    messages: str | None = None
    prompt: str | None = None
    completion: str | None = None
    system: str | None = None
    text: str | None = None
    tools: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _named_alone(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"path": value}
        if isinstance(value, cls):
            return value
        if not isinstance(value, dict):
            raise ValueError("a path is needed here, or keys with one, such as {path: rows.jsonl}")
        if unknown := next((key for key in value if key not in cls.model_fields), None):
            known = ENTRY_KEYS.get(str(unknown)) or near(str(unknown), cls.model_fields)
            raise ValueError(f"no entry has a key {unknown!r}{did_you_mean(known)}; there are {', '.join(cls.model_fields)}")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "MixedData":
        check_columns(self.messages, self.prompt, self.completion, self.text)
        return self


def check_columns(messages: str | None, prompt: str | None, completion: str | None, text: str | None) -> None:
    """Raises ValueError if the columns named are not those of one way to read a row."""
    if (prompt is None) != (completion is None):
        raise ValueError("prompt and completion name the two columns of one conversation: give both")
    if messages and prompt:
        raise ValueError("give either messages or prompt and completion, not both")
    if text and (messages or prompt):
        raise ValueError(
            "text is a column of plain text, messages, prompt and completion make conversations: give one or the other"
        )


def check_beside(datasets: Sequence[Any], given: Mapping[str, Any], where: str) -> None:
    """See that nothing beside a mixture says how its rows are read: its entries do.

    Args:
        datasets: the entries, as they were written. given: settings whose value is not the default. where: what holds the entries.

    Raises:
        RecipeError: a setting would be ignored; it names the entry's own key.
    """
    # A split is that of every entry without one of its own.
    ignored = set(ENTRY_KEYS) - (set() if all(_value(entry, "split") for entry in datasets) else {"dataset_split"})
    settings = {name: str(value) for name, value in given.items() if name in ignored}
    if settings:
        one = len(settings) == 1
        raise RecipeError(
            f"{' and '.join(settings)} {'is' if one else 'are'} given beside a mixture and would be ignored: each entry of {where} "
            "says itself how its rows are read.",
            f"Take {'it' if one else 'them'} out and write `{as_keys(settings)}` into the entry that is meant, such as that of "
            f"{_value(datasets[0], 'path')}.",
        )


def as_keys(settings: Mapping[str, Any]) -> str:
    """Settings as an entry has them: ``prompt: ask, completion: said``."""
    keys = {ENTRY_KEYS.get(name, name): value for name, value in settings.items()}
    return yaml.safe_dump(keys, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6).strip()[1:-1]


def _value(entry: Any, key: str) -> Any:
    """What an entry has under a key, checked yet or not. An entry that is text is its path."""
    if isinstance(entry, str):
        return entry if key == "path" else None
    return entry.get(key) if isinstance(entry, dict) else getattr(entry, key, None)


def mixture_name(datasets: Sequence[Any]) -> str:
    """What a mixture is called: its paths."""
    return " + ".join(str(_value(entry, "path")) for entry in datasets)


def repeated(datasets: Sequence[MixedData]) -> str | None:
    """The path of rows that two entries name, however it is written. Their rows could not be told apart."""
    seen = [(realpath(expanduser(entry.path)), entry.split, entry.subset) for entry in datasets]
    return next((entry.path for entry, rows in zip(datasets, seen) if seen.count(rows) > 1), None)
