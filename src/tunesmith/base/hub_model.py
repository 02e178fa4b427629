"""A model on the hub: whether it is there, asked before anything is imported that takes seconds."""

from tunesmith.base.catalog import BUNDLED, ModelSource
from tunesmith.errors import ModelError, nearest


def check_on_hub(source: ModelSource) -> None:
    """Ask the hub for the model's config, unless it is on this machine already.

    Raises:
        ModelError: there is no such model, it may not be read, or the hub cannot be reached.
    """
    from huggingface_hub import errors, hf_hub_download

    reasons = {
        errors.LocalEntryNotFoundError: "it could not be asked",
        errors.GatedRepoError: "it gives it only to those who accepted the model's conditions and are logged in",
        errors.RepositoryNotFoundError: "it has no such model, or a private one",
        errors.RevisionNotFoundError: f"it has no revision {source.revision!r} of it",
        errors.EntryNotFoundError: "what it has of that name holds no config.json; of GGUF files, fetch one and name it",
    }
    try:
        if source.folder() is None:
            hf_hub_download(source.path, "config.json", revision=source.revision)
    except (OSError, ValueError, errors.EntryNotFoundError) as error:
        why = next((text for kind, text in reasons.items() if isinstance(error, kind)), str(error).partition("\n")[0].rstrip("."))
        raise not_given(source, why) from error


def not_given(source: ModelSource, why: str) -> ModelError:
    """That a model is nowhere to be had. why: in the hub's words."""
    return ModelError(
        f"There is no model {source.base}{nearest(source.base, BUNDLED)}: it is not bundled, not a folder here, and the hub could "
        f"not give it ({why})",
        "Check the name, your network, and `tunesmith login` for gated models.",
    )
