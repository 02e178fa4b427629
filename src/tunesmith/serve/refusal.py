"""A request that is not answered: the status, and the reason in the form OpenAI's clients read."""

from collections.abc import Mapping
from typing import Any

LONGEST = 500
"""Characters of a reason; it may quote what the client sent."""


class RefusalError(Exception):
    """status: of HTTP. message: what is wrong and what is allowed. param: the field at fault. code: for programs to read."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The answer's JSON."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        message = _plain(self.message) or ""
        return {"error": {"message": message, "type": kind, "param": _plain(self.param), "code": self.code}}


def _plain(text: str | None) -> str | None:
    """Without control characters and half characters, and not without end."""
    if text is None:
        return None
    short = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in short)
