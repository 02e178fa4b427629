"""One data set of a mixture, as a recipe names it."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

DataFormat = Literal["auto", "messages", "sharegpt", "prompt_completion", "alpaca", "text"]


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
        return {"path": value} if isinstance(value, str) else value

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


def mixture_name(datasets: Sequence[Any]) -> str:
    """What a mixture is called: its paths."""
    paths = [entry.get("path") if isinstance(entry, dict) else getattr(entry, "path", entry) for entry in datasets]
    return " + ".join(map(str, paths))


def repeated(datasets: Sequence[MixedData]) -> str | None:
    """The path of rows that two entries name. Their rows could not be told apart."""
    seen = [(entry.path, entry.split, entry.subset) for entry in datasets]
    return next((path for path, split, subset in seen if seen.count((path, split, subset)) > 1), None)
