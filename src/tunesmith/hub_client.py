"""The hub's client: what it takes from the environment, looked at before it is imported, and what it raises, in plain words."""

import os
import re
from urllib.parse import urlsplit

from tunesmith.errors import HubError

SECONDS = ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT")
"""Variables it reads as whole numbers when it is imported, which transformers does, too, where nothing is asked of the hub."""


def check_environment() -> None:
    """Raises HubError for a variable whose value it cannot take."""
    address = os.environ.get("HF_ENDPOINT")
    if address is not None and not _is_address(address):
        raise HubError(
            f"HF_ENDPOINT is {address!r}, which is not the address of a hub.",
            "Unset it for huggingface.co itself, or write it whole: export HF_ENDPOINT=https://huggingface.co",
        )
    for name in SECONDS:
        if not (value := os.environ.get(name, "0").strip()).isdecimal():
            raise HubError(
                f"{name} is {value!r}, which is not a whole number of seconds.", f"Unset it, or give one: export {name}=10"
            )


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0  # a port may be no number
    except ValueError:
        return False
    return whole and not any(map(str.isspace, text))


def why_not_given(error: Exception, what: str, revision: str | None, own: tuple[type[Exception], str]) -> str | None:
    """Why it did not give what it was asked for, if the error says that.

    Args:
        what: was asked for, a model or a data set. revision: of it. own: an error that says more of one than of the other, and what
            it says.
    """
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    reasons: dict[type[Exception], str] = {
        errors.OfflineModeIsEnabled: "it could not be asked: HF_HUB_OFFLINE or the like is set",
        httpx.RequestError: "it could not be asked",
        errors.LocalEntryNotFoundError: "it could not be asked",
        errors.GatedRepoError: f"it gives it only to those who accepted the {what}'s conditions and are logged in",
        errors.RepositoryNotFoundError: f"it has no such {what}, or a private one",
        errors.RevisionNotFoundError: f"it has no revision {revision!r} of it",
        own[0]: own[1],
    }
    return next((why for kind, why in reasons.items() if isinstance(error, kind)), None)


def id_in(address: str) -> str | None:
    """The id, user/name, of the model or data set that an address of the hub shows."""
    found = re.match(r"(?:https?://(?:huggingface\.co|hf\.co)|hf:/)/(?:datasets/)?([\w.-]+/[\w.-]+)", address)
    return found[1] if found else None


def first_line(error: Exception) -> str:
    """What it says itself, without the advice below and the full stop."""
    return str(error).partition("\n")[0].rstrip(".") or type(error).__name__
