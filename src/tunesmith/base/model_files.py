"""The files of a folder before others open them: no pipe that would be waited for, no name that leads elsewhere."""

import json
from pathlib import Path

from tunesmith.errors import ModelError

LONGEST_CONFIG = 2**26
"""Bytes of a tokenizer_config.json; those of real models have up to a million."""


def check_files(folder: Path) -> None:
    """Raises ModelError if the folder holds a pipe, socket or device, or its tokenizer names a file of another folder, or a
    hidden one: what it names is read as a vocabulary, and goes wherever the tokenizer is copied to."""
    for path in sorted(folder.iterdir()):
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ModelError(f"{path} is a pipe, socket or device, not a file.", "Take it out of the folder.")
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return
    try:
        if path.stat().st_size > LONGEST_CONFIG:
            raise ValueError("it is far too large")
        told = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(told, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}.", "Download the model again.") from error
    for key, value in told.items():
        if key.endswith("_file") and isinstance(value, str) and (Path(value).name != value or value.startswith(".")):
            raise ModelError(f"{path}: {key} is {value!r}, which is not a file of this model.", "Take another copy of the model.")
