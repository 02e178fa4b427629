"""What is said over HTTP: requests as OpenAI's clients write them, each field checked, and what they get back.

A field that would change the answer is honoured or refused by name; some are taken with the one value that changes nothing.
Those of `IGNORED` change nothing here and are accepted.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tunesmith.serve.answer import Finish
from tunesmith.serve.limits import Limits
from tunesmith.serve.logprobs import Logprobs

IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls")
"""Fields that are accepted and have no effect."""
NO_BIAS = dict.fromkeys(
    ("frequency_penalty", "presence_penalty", "logit_bias"), "answers are drawn by temperature, top_p, top_k and seed alone"
)
MESSAGES, STOPS, STOP_LENGTH, TOP = 1000, 4, 200, 20
TINY = 1e-3
"""Temperatures below are taken as 0: the likeliest token has all of the probability."""


class _Strict(BaseModel):
    """Nothing is converted, and nothing unknown is passed over."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class TextPart(_Strict):
    """One part of a message that comes in parts."""

    type: Literal["text"]
    text: str


class Message(_Strict):
    """One message. developer is another name of system; tool messages and tool_calls are for templates that know tools. OpenAI's
    client writes the last four, empty, into an answer that goes back as a message."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None

    @field_validator("content", mode="before")
    @classmethod
    def _text_only(cls, value: Any) -> Any:
        kinds = [part.get("type") for part in value if isinstance(part, dict)] if isinstance(value, list) else []
        for kind in kinds:
            if isinstance(kind, str) and kind != "text":
                raise ValueError(f"a part of type {kind!r} is not taken: this model reads text only")
        return value

    def as_dict(self) -> dict[str, Any]:
        """The message as data sets write it; without content only where there are calls."""
        content = "".join(part.text for part in self.content) if isinstance(self.content, list) else self.content
        role = "system" if self.role == "developer" else self.role
        more = {"name": self.name, "tool_calls": self.tool_calls, "tool_call_id": self.tool_call_id}
        return {"role": role, "content": content, **{key: value for key, value in more.items() if value is not None}}


class StreamOptions(_Strict):
    """include_usage: a last chunk with the counts of tokens. include_obfuscation: accepted, without effect."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class TextFormat(_Strict):
    """Answers are text."""

    type: Literal["text"]


Zero = Annotated[float, Field(ge=0, le=0)]
StopText = Annotated[str, Field(min_length=1, max_length=STOP_LENGTH)]
Count = Annotated[int, Field(ge=1, le=Limits.answer)]


class AnswerRequest(_Strict):
    """What any request for answers may say. They are greedy unless a temperature is given.

    Attributes:
        prompted_by: the field that the prompt is made of. usual: tokens of an answer that does not say; None for the server's own.
        not_here: why fields are taken with the one value that changes nothing, to be said to those who give another.
    """

    prompted_by: ClassVar[str]
    not_here: ClassVar[dict[str, str]] = NO_BIAS
    usual: ClassVar[int | None] = None

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=STOPS)] | None = None
    n: Annotated[int, Field(ge=1, le=Limits.choices)] | None = None
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    user: Any = None

    @model_validator(mode="after")
    def _consistent(self) -> "AnswerRequest":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only together with stream: true")
        if self.each > 1 and self.greedy:
            raise ValueError("n: at temperature 0, which is the default here, all answers are the same; give a temperature above 0")
        return self

    @property
    def each(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    @property
    def prompts(self) -> int:
        """How many prompts there are."""
        return 1

    @property
    def names(self) -> list[str]:
        """What each prompt is called to the client."""
        return [self.prompted_by]

    @property
    def longest(self) -> tuple[str, int] | None:
        """The field that says how many tokens an answer may have, and how many."""
        return None if self.max_tokens is None else ("max_tokens", self.max_tokens)

    @property
    def top(self) -> int | None:
        """Likeliest tokens to tell in the place of each; None for no logprobs at all."""
        return None

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end the answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def greedy(self) -> bool:
        return (self.temperature or 0) < TINY


class ChatRequest(AnswerRequest):
    """The body of /v1/chat/completions."""

    prompted_by: ClassVar[str] = "messages"
    not_here: ClassVar[dict[str, str]] = {
        **NO_BIAS,
        "tool_choice": "nothing makes the model call a tool; 'auto' and 'none' are taken",
        "response_format.type": "nothing holds an answer to a form; ask for it in the messages, with type 'text', and check it",
    }

    messages: Annotated[list[Message], Field(min_length=1, max_length=MESSAGES)]
    max_completion_tokens: Count | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=128)] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=TOP)] | None = None
    response_format: TextFormat | None = None
    modalities: list[Literal["text"]] | None = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    parallel_tool_calls: Any = None

    @model_validator(mode="after")
    def _honoured(self) -> "ChatRequest":
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens: differs from max_completion_tokens; give one of them")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: only together with logprobs: true")
        return self

    @property
    def longest(self) -> tuple[str, int] | None:
        asked = self.max_completion_tokens
        return super().longest if asked is None else ("max_completion_tokens", asked)

    @property
    def top(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class Usage(BaseModel):
    """Counts of tokens: of each prompt once, and of all answers with their stop tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, prompt: int, answer: int) -> "Usage":
        return cls(prompt_tokens=prompt, completion_tokens=answer, total_tokens=prompt + answer)


class Said(BaseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    """One answer of a completion."""

    index: int
    message: Said
    finish_reason: Finish
    logprobs: Logprobs | None = None


class Completion(BaseModel):
    """What a request without stream gets."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class ModelCard(BaseModel):
    """One model that can be asked for. parent: what its adapter sits on. max_model_len: tokens it can see."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["tunesmith"] = "tunesmith"
    parent: str | None
    max_model_len: int


class ModelList(BaseModel):
    """What can be asked for."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class ErrorFields(BaseModel):
    """message: what is wrong and what is allowed. param: the field at fault."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """What a request that is refused gets."""

    error: ErrorFields


class Health(BaseModel):
    """status: ok; a server that can give no more answers says so as an error."""

    status: Literal["ok"]
