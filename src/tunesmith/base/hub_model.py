"""A model on the hub: whether it is there, asked before anything is imported that takes seconds."""

from contextlib import suppress

from tunesmith.base.catalog import BUNDLED, ModelSource
from tunesmith.errors import ModelError, nearest


def check_on_hub(source: ModelSource) -> None:
    """Ask the hub for the model's config, unless it is on this machine already.

    Raises:
        ModelError: there is no such model, it may not be read, or the hub cannot be reached.
    """
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    reasons = {
        errors.OfflineModeIsEnabled: "it could not be asked: HF_HUB_OFFLINE or the like is set",
        httpx.RequestError: "it could not be asked",
        errors.LocalEntryNotFoundError: "it could not be asked",
        errors.GatedRepoError: "it gives it only to those who accepted the model's conditions and are logged in",
        errors.RepositoryNotFoundError: "it has no such model, or a private one",
        errors.RevisionNotFoundError: f"it has no revision {source.revision!r} of it",
        errors.EntryNotFoundError: "what it has of that name holds no config.json; of GGUF files, fetch one and name it",
    }
    try:
        if source.folder() is None:
            with suppress(errors.HfHubHTTPError):  # any answer will do: a download tries for 23 s to reach a hub that gives none
                get_hf_file_metadata(hf_hub_url(source.path, "config.json", revision=source.revision))
            hf_hub_download(source.path, "config.json", revision=source.revision)
    except (OSError, ValueError, ImportError, errors.EntryNotFoundError, httpx.RequestError, httpx.InvalidURL) as error:
        why = next((text for kind, text in reasons.items() if isinstance(error, kind)), str(error).partition("\n")[0].rstrip("."))
        raise not_given(source, why) from error


def not_given(source: ModelSource, why: str) -> ModelError:
    """That a model is nowhere to be had. why: in the hub's words."""
    return ModelError(
        f"There is no model {source.base}{nearest(source.base, BUNDLED)}: it is not bundled, not a folder here, and the hub could "
        f"not give it ({why})",
        "Check the name, your network, and `tunesmith login` for gated models.",
    )
