"""A model on the hub: whether it is there, asked before anything is imported that takes seconds."""

from contextlib import suppress

from tunesmith.base.catalog import BUNDLED, ModelSource
from tunesmith.errors import ModelError, nearest
from tunesmith.hub_client import first_line, why_not_given


def check_on_hub(source: ModelSource) -> None:
    """Ask the hub for the model's config, unless it is on this machine already.

    Raises:
        ModelError: there is no such model, it may not be read, or the hub cannot be reached.
    """
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    empty = errors.EntryNotFoundError, "what it has of that name holds no config.json; of GGUF files, fetch one and name it"
    try:
        if source.folder() is None:
            with suppress(errors.HfHubHTTPError):  # any answer will do: a download tries for 23 s to reach a hub that gives none
                get_hf_file_metadata(hf_hub_url(source.path, "config.json", revision=source.revision))
            hf_hub_download(source.path, "config.json", revision=source.revision)
    except (OSError, ValueError, ImportError, errors.EntryNotFoundError, httpx.RequestError, httpx.InvalidURL) as error:
        raise not_given(source, why_not_given(error, "model", source.revision, empty) or first_line(error)) from error


def not_given(source: ModelSource, why: str) -> ModelError:
    """That a model is nowhere to be had. why: in the hub's words."""
    return ModelError(
        f"There is no model {source.base}{nearest(source.base, BUNDLED)}: it is not bundled, not a folder here, and the hub could "
        f"not give it ({why})",
        "Check the name, your network, and `tunesmith login` for gated models.",
    )
