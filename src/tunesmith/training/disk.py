"""Files that are there whole after a crash, and plain words for a disk that is full or cannot be written."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tunesmith.errors import RunError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_durably(path: Path, content: bytes) -> None:
    """Write a new file and have the disk keep it before this returns."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o644)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_durably(path: Path, content: bytes) -> None:
    """Write a file beside its place and move it there: the old content or the new, never half of it."""
    made = path.with_name(f".tmp-{path.name}")
    write_durably(made, content)
    os.replace(made, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the disk keep which files a folder holds; Windows does so by itself."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(folder: Path) -> None:
    """Remove what a process that died was in the middle of writing (``.tmp-…``)."""
    for path in folder.glob(".tmp-*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def check_room(folder: Path, needed: int, what: str) -> None:
    """Raises RunError if the disk of ``folder`` has fewer bytes free than ``needed`` for ``what``."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise RunError(
            f"The disk is too full for {what}: {needed:,} bytes needed, {free:,} free in {folder}.",
            f"Free some space{_then(folder)}.",
        )


@contextmanager
def plain_disk_errors(run: Path) -> Iterator[None]:
    """Turns a failure to write within this block into a RunError; checkpoints made before are whole."""
    try:
        yield
    except OSError as error:
        if error.errno is None or isinstance(error, BrokenPipeError):  # a library's own; a terminal that is gone
            raise
        free = shutil.disk_usage(run).free if run.exists() else 0
        if error.errno in FULL:
            what = f"The disk is full: {error.filename or run} could not be written, {free:,} bytes are free."
            raise RunError(what, f"Free some space{_then(run)}.") from error
        what = f"{error.filename or run}: {error.strerror or error}."
        raise RunError(what, f"Make {run} writable again{_then(run)}.") from error


def _then(folder: Path) -> str:
    """What to type afterwards, if there is something to go on from."""
    run = folder.parent if folder.name == "checkpoints" else folder
    return f", then `tunesmith resume {run}`" if any(run.glob("checkpoints/checkpoint-*")) else ""
