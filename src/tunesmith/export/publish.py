"""A run, a merged model or a GGUF file on the hub: its card written, what goes chosen and scanned, pushed."""

from collections.abc import Callable
from pathlib import Path

from tunesmith.errors import HubError, RunError
from tunesmith.export.hub import Pushed, push_files
from tunesmith.export.hub_card import hub_card, shipped_of
from tunesmith.export.hub_errors import in_users_terms, secrets
from tunesmith.export.hub_files import Parcel, kind_of, pack

SHOWN = 8
"""Findings an error names."""


def prepare(place: Path, repo: str, *, base: str | None = None, facts_of: Path | None = None) -> Parcel:
    """What would go to ``repo`` and what would stay. Asks nobody, changes nothing.

    Args:
        place: a run, a folder that merge wrote, or a .gguf file. base: hub id of the base model, where the run names none.
        facts_of: the run that a merged model or GGUF file came from, for its card.

    Raises:
        HubError: ``repo`` is no name. RunError: there is nothing to push, or it was changed after training.
    """
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    for name in (repo, *([base] if base else [])):
        with in_users_terms(name):
            validate_repo_id(name)
        if name.count("/") != 1:
            raise HubError(f"{name!r} is no name of a repository on the hub.", "Give user/name, such as me/yoda-adapter.")
    card, named = hub_card(place, repo, base, facts_of), None
    if kind_of(place) == "adapter":
        shipped = shipped_of(place, repo, base)
        named = shipped.base or shipped.base_name
    return pack(place, card, named, secrets())


def publish(
    place: Path, repo: str, *, public: bool = False, base: str | None = None, facts_of: Path | None = None,
    told: Callable[[str], None] = lambda line: None,
) -> Pushed:  # fmt: skip
    """Put it on the hub in one commit, private unless ``public``; a repository that is there stays as visible as it is.

    Args:
        place, base, facts_of: see `prepare`. told: what is going on.

    Raises:
        RunError: something in it must not be published. HubError: the hub refused or could not be reached.
    """
    parcel = prepare(place, repo, base=base, facts_of=facts_of)
    if parcel.findings:
        shown = "; ".join(map(str, parcel.findings[:SHOWN]))
        more = f"; and {len(parcel.findings) - SHOWN} more" if len(parcel.findings) > SHOWN else ""
        raise RunError(
            f"This must not be published: {shown}{more}. Nothing was pushed.", "Take it out of the files, and push again."
        )
    return push_files(
        repo, parcel.files, f"Push {place.stem if place.is_file() else place.resolve().name} with tunesmith", public, told
    )
