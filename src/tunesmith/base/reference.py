"""What was typed for a model, looked at before it is looked for."""

import os

from tunesmith.errors import ModelError
from tunesmith.hub_client import id_in

LONGEST_NAME = 255
"""Bytes of a file's name, as any file system has them at most."""


def check_reference(reference: str) -> None:
    """Raises ModelError for what names neither a place nor a hub id: nothing, a revision alone, an address, a whole text."""
    if not reference.strip():
        raise ModelError("The model has no name.", "Give a folder, a .gguf file, a hub id or smollm2-135m.")
    if not reference.partition("@")[0].strip():
        raise ModelError(f"{reference} names a revision of no model.", f"Write a hub id before it: user/name{reference.strip()}")
    if "://" in reference:
        what = f"{reference} is an address, and a model of the hub is named by its id."
        raise ModelError(what, f"Name it so: {id_in(reference) or 'user/name'}")
    if max(map(len, os.fsencode(reference).split(b"/"))) > LONGEST_NAME:
        raise ModelError(f"No name is as long as {reference[:60]}… ({len(reference):,} characters).", "Check what you typed.")
