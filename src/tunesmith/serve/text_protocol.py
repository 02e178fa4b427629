"""What is said over /v1/completions: a text that the model goes on with, without a chat template."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from tunesmith.serve.answer import Finish
from tunesmith.serve.limits import Limits
from tunesmith.serve.protocol import NO_BIAS, AnswerRequest, Usage


class TextRequest(AnswerRequest):
    """The body of /v1/completions. usual: the protocol's own default, since a text that is gone on with may never end."""

    prompted_by: ClassVar[str] = "prompt"
    not_here: ClassVar[dict[str, str]] = {
        **NO_BIAS,
        "echo": "the prompt is not given back; put it before the answer yourself",
        "suffix": "the model goes on with a text, and fills nothing in",
        "logprobs": "/v1/chat/completions tells them",
        "best_of": "no answers are compared; ask for n, and choose",
    }
    usual: ClassVar[int | None] = 16

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=Limits.choices)]
    echo: Literal[False] | None = None
    suffix: None = None
    logprobs: None = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _texts_only(cls, value: Any) -> Any:
        if isinstance(value, list) and any(isinstance(part, int | list) for part in value):
            raise ValueError("token ids are not taken; send a text, or a list of texts")
        return value

    @model_validator(mode="after")
    def _countable(self) -> "TextRequest":
        if self.prompts * self.each > Limits.choices:
            asked = f"{self.prompts} prompts with {self.each} answers each"
            raise ValueError(f"n: {asked} are more than the {Limits.choices} answers that a request may ask for")
        return self

    @property
    def texts(self) -> list[str]:
        """The prompts."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def prompts(self) -> int:
        return len(self.texts)

    @property
    def names(self) -> list[str]:
        return ["prompt"] if isinstance(self.prompt, str) else [f"prompt.{number}" for number in range(len(self.prompt))]


class TextChoice(BaseModel):
    """One answer. index: those to the first prompt come first."""

    index: int
    text: str
    finish_reason: Finish
    logprobs: None = None


class TextCompletion(BaseModel):
    """What a request without stream gets."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage
