"""What the hub's client raises, in the user's own terms. No token is ever in a message."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tunesmith.errors import HubError

TOKENS = "https://huggingface.co/settings/tokens"
AGAIN = "Run the same command again: what was uploaded is kept, and nothing was changed here."


class TooBusyError(Exception):
    """The hub asks to be left alone for longer than a user wants to wait. Raised within the client's own retries."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"wait {seconds} s")
        self.seconds = seconds


@contextmanager
def in_users_terms(repo: str, who: str | None = None) -> Iterator[None]:
    """Raise HubError instead of what huggingface_hub and its HTTP library raise about ``repo``.

    Args:
        who: the user who is logged in, once that is known.
    """
    try:
        yield
    except HubError:
        raise
    except Exception as error:
        translated = _translated(error, repo, who)
        if translated is None:
            raise
        # A server may have echoed what it was sent; then the chain is cut, so that no traceback shows it.
        raise translated from (None if any(secret in _chain_text(error) for secret in secrets()) else error)


def secrets() -> tuple[str, ...]:
    """The tokens this process would use: from the environment and from the hub's own store."""
    from huggingface_hub import get_token

    named = [os.environ.get("HF_TOKEN"), os.environ.get("HUGGING_FACE_HUB_TOKEN"), get_token()]
    return tuple(sorted({token.strip() for token in named if token and len(token.strip()) >= 8}))


def redacted(text: str) -> str:
    """The text on one line, without those tokens."""
    for secret in secrets():
        text = text.replace(secret, "…")
    return " ".join(text.split())


def is_lost(error: BaseException) -> bool:
    """Whether the hub may have done what was asked, though no answer came: a lost connection, or an error of its own."""
    return any(
        not _is(link, "ConnectError", "ConnectTimeout") and (_is(link, "TransportError") or _status(link) >= 500)
        for link in _chain(error)
    )


def is_passing(error: BaseException) -> bool:
    """Whether to try again may help."""
    return any(_is(link, "TransportError") or _status(link) in (408, 429) or _status(link) >= 500 for link in _chain(error))


def _translated(error: Exception, repo: str, who: str | None) -> HubError | None:
    for link in _chain(error):
        if isinstance(link, TooBusyError):
            return HubError(
                f"The hub asks to wait {link.seconds} s before the next request.", f"In {_spell(link.seconds)}: {AGAIN}"
            )
        if _is(link, "OfflineModeIsEnabled"):
            return HubError(
                "HF_HUB_OFFLINE is set, so the hub is not asked for anything.", "Unset it to push; --dry-run works without."
            )
        if _is(link, "LocalTokenNotFoundError"):
            return HubError("You are not logged in to the hub.", "Run `tunesmith login`, or set HF_TOKEN.")
        if _is(link, "HFValidationError"):
            return HubError(
                f"{repo!r} is no name for a repository: {redacted(str(link))}", "Give user/name, such as me/yoda-adapter."
            )
        if _is(link, "TransportError"):
            return HubError(f"The hub ({_endpoint()}) cannot be reached: {redacted(str(link)) or type(link).__name__}.", AGAIN)
        if _status(link):
            return _refused(link, _status(link), repo, who)
    if isinstance(error, ValueError | KeyError | RuntimeError):  # of the client, over an answer it did not expect
        said = redacted(str(error))[:200]
        return HubError(f"{_endpoint()} answered what the hub's client does not understand: {said}", "See HF_ENDPOINT. " + AGAIN)
    return None


def _refused(error: Any, status: int, repo: str, who: str | None) -> HubError:
    said = redacted(getattr(error, "server_message", None) or "")
    hub_said = f" The hub said: {said.rstrip('.')}." if said else ""
    if status == 401 and who is None:
        return HubError(f"The hub does not accept your token {_where_from()}.", _another("any"))
    if status in (401, 403, 404):
        space = repo.split("/")[0]
        whose = f", and {space} is not you" if who and space != who else ""
        you = f"{who} " if who else ""
        return HubError(
            f"Your token {_where_from()} may not write to {repo}: you are {you or 'not '}logged in{whose}.{hub_said}",
            f"Give a name under {who or 'your own'}, or a token with write permission: {_another('write')}",
        )
    if status == 409:
        return HubError(f"{repo} is taken, or the hub is busy with it.{hub_said}", "Give another name, or try again.")
    if status == 412:
        return HubError(f"Somebody else changed {repo} in the meantime; nothing of it was overwritten.{hub_said}", AGAIN)
    if status == 429:
        return HubError(f"The hub gets too many requests from you.{hub_said}", f"Wait a while. {AGAIN}")
    if status >= 500:
        return HubError(f"The hub has a fault of its own just now ({status}).{hub_said}", f"Wait a while. {AGAIN}")
    return HubError(f"The hub refused to take {repo} ({status}).{hub_said}", "See what it says.")


def _another(permission: str) -> str:
    kind = "a token with write permission" if permission == "write" else "one"
    set_here = "set HF_TOKEN to it" if os.environ.get("HF_TOKEN") else "run `tunesmith login --force`"
    return f"make {kind} at {TOKENS} and {set_here}."


def _where_from() -> str:
    return "(from HF_TOKEN)" if os.environ.get("HF_TOKEN") else "(from the hub's own store)"


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _spell(seconds: int) -> str:
    return f"{seconds} s" if seconds < 120 else f"{-(-seconds // 60)} minutes"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _chain_text(error: BaseException) -> str:
    return " ".join(str(link) for link in _chain(error))


def _is(error: BaseException, *names: str) -> bool:
    """By name: the client's HTTP library is httpx in some versions and httpx2 in others."""
    return any(kind.__name__ in names for kind in type(error).__mro__)


def _status(error: BaseException) -> int:
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)
