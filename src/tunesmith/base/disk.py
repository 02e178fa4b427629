"""Files that the disk keeps, and plain words for a disk that is full or cannot be written."""

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
    sync(path.parent)


def sync(path: Path) -> None:
    """Have the disk keep a file's content, or which files a folder holds."""
    windows = os.name == "nt"
    if windows and path.is_dir():  # it does so by itself
        return
    handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)  # which syncs files that may not be written, too
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def share(path: Path) -> None:
    """Give a file the rights that new files get here: safetensors makes its own for one user alone, whom a server may not be."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def check_room(folder: Path, needed: int, what: str) -> None:
    """Raises RunError if the disk of ``folder`` has fewer bytes free than ``needed`` for ``what``."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise RunError(
            f"The disk is too full for {what}: {needed:,} bytes needed, {free:,} free in {folder}.",
            f"Free some space{_then(folder)}.",
        )


@contextmanager
def plain_disk_errors(place: Path) -> Iterator[None]:
    """Turns a failure to write within this block into a RunError. place: the run, whose checkpoints made before are whole, or
    another file or folder that is being made."""
    try:
        yield
    except OSError as error:
        if error.errno is None or isinstance(error, BrokenPipeError):  # a library's own; a terminal that is gone
            raise
        if error.errno in FULL:
            full = Path(os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else place).absolute()
            disk = next(path for path in (full, *full.parents) if path.is_dir())
            free = shutil.disk_usage(disk).free
            what = f"The disk is full: {error.filename or place} could not be written, {free:,} bytes are free."
            raise RunError(what, f"Free some space{_then(place)}.") from error
        again = f"Make {place} writable again{_then(place)}."
        mend = again if place.exists() else f"Make {place.parent} writable, or give another place."
        raise RunError(f"{error.filename or place}: {error.strerror or error}.", mend) from error


def _then(folder: Path) -> str:
    """What to type afterwards, if there is something to go on from."""
    run = folder.parent if folder.name == "checkpoints" else folder
    return f", then `tunesmith resume {run}`" if any(run.glob("checkpoints/checkpoint-*")) else ""
