"""Counts for Prometheus: requests, tokens, seconds. No texts, no secrets. Kept and read on the event loop alone."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from tunesmith.serve.guard import App, Message, Receive, Scope, Send

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics")


class Metrics:
    """Wraps an app and counts what goes through."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()
        self.prompt_tokens: Counter[str] = Counter()
        self.answer_tokens: Counter[str] = Counter()
        self.answers: Counter[tuple[str, str]] = Counter()
        self.seconds: Counter[str] = Counter()

    def answered(self, model: str, prompt: int, tokens: int, seconds: float, end: str) -> None:
        """An answer that ended: tokens of its prompt and its own, and why it ended (stop, length, left, failed)."""
        self.prompt_tokens[model] += prompt
        self.answer_tokens[model] += tokens
        self.answers[model, end] += 1
        self.seconds[model] += seconds  # type: ignore[assignment]

    def counting(self, app: App) -> App:
        """The app, its answers counted by path and status."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            async def noted(message: Message) -> None:
                if message["type"] == "http.response.start":
                    path = scope["path"]
                    self.requests[path if path in PATHS else "other", str(message["status"])] += 1
                await send(message)

            await app(scope, receive, noted if scope["type"] == "http" else send)

        return counted

    def text(self, gauges: Mapping[str, tuple[str, float]]) -> str:
        """All counts in Prometheus' text format, and the gauges: name to help and value."""
        lines = _family("requests_total", "counter", "Requests by path and status", ("path", "status"), self.requests)
        lines += _family("answers_total", "counter", "Answers by model and how they ended", ("model", "end"), self.answers)
        for name, told, counts in (
            ("prompt_tokens_total", "Tokens of prompts", self.prompt_tokens),
            ("answer_tokens_total", "Tokens of answers", self.answer_tokens),
            ("answer_seconds_total", "Seconds from request to end of answer", self.seconds),
        ):
            lines += _family(name, "counter", told, ("model",), {(model,): n for model, n in counts.items()})
        for name, (told, value) in gauges.items():
            lines += _family(name, "gauge", told, (), {(): value})
        return "\n".join(lines) + "\n"


def _family(name: str, kind: str, told: str, labels: tuple[str, ...], values: Mapping[Any, float]) -> list[str]:
    """values: by what the labels are, in their order."""
    lines = [f"# HELP tunesmith_{name} {told}.", f"# TYPE tunesmith_{name} {kind}"]
    for key, value in sorted(values.items()):
        pairs = ",".join(f'{label}="{_escaped(part)}"' for label, part in zip(labels, key, strict=True))
        lines.append(f"tunesmith_{name}{'{' + pairs + '}' if pairs else ''} {value}")
    return lines


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
