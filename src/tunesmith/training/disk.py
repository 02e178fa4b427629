"""Files that are there whole after a crash, and plain words for a disk that is full or cannot be written."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tunesmith.errors import RunError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

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


@contextmanager
def made_whole(place: Path) -> Iterator[Path]:
    """A place to make a file or a folder at, which is moved to ``place`` at the end of the block: all of it, or none, also if the
    process is killed or the power fails. What a process that died has left of it is cleared away; an error leaves nothing.

    Raises:
        RunError: another process is making it, or something came there meanwhile.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    workshop = place.with_name(f".tmp-{place.name}")
    workshop.mkdir(exist_ok=True)
    with _alone_in(workshop, place):
        made = workshop / place.name
        _remove(made)
        try:
            yield made
            for path in (made, *made.rglob("*")):
                (sync_folder if path.is_dir() else _sync_file)(path)
            _move(made, place)
            sync_folder(place.parent)
        finally:
            shutil.rmtree(workshop, ignore_errors=True)


@contextmanager
def _alone_in(workshop: Path, place: Path) -> Iterator[None]:
    """Holds the system's own lock on a folder, where there is one; it ends with the process."""
    if fcntl is None:
        yield
        return
    handle = os.open(workshop, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise RunError(f"Another process is making {place}.", "Wait for it to end, or give another name.") from error
    except OSError:
        pass  # a disk without locks
    try:
        yield
    finally:
        os.close(handle)


def _move(made: Path, place: Path) -> None:
    """Raises RunError if something stands there, other than an empty folder where a folder goes."""
    try:
        if place.is_dir():
            place.rmdir()
        elif place.exists():
            raise FileExistsError
    except OSError as error:
        raise RunError(f"{place} was made by somebody else meanwhile.", "Give another name, or move it away.") from error
    os.rename(made, place)


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
        _remove(path)


def _remove(path: Path) -> None:
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
