"""Files and folders that are made beside their place and get their name when they are whole, by one process at a time."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tunesmith.base.disk import sync
from tunesmith.errors import RunError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def made_whole(place: Path, *, folder: bool = False) -> Iterator[Path]:
    """A place to make a file at, or a folder that is there and empty, which is moved to ``place`` at the end of the block: all of
    it, or none, also if the process is killed or the power fails. What a process that died has left of it is cleared away; an
    error leaves nothing.

    Raises:
        RunError: something is there already or comes there meanwhile, nothing can be there, or another process is making it.
    """
    check_free(place, folder=folder)
    place.parent.mkdir(parents=True, exist_ok=True)
    with workshop(place) as here:
        made = here / place.name
        _remove(made)
        if folder:
            made.mkdir()
        yield made
        for path in (made, *made.rglob("*")):
            sync(path)
        _move(made, place)
        sync(place.parent)


@contextmanager
def workshop(place: Path) -> Iterator[Path]:
    """A folder beside ``place`` in which this process alone makes what goes there. It is removed at the end.

    Raises:
        RunError: another process is in it.
    """
    here = place.with_name(f".tmp-{place.name}")
    with ExitStack() as held:
        while True:
            try:
                here.mkdir(exist_ok=True)
                held.enter_context(_locked(here))
                break
            except FileNotFoundError:
                pass  # the one that was in it has just removed it
            except FileExistsError as error:  # also if it was removed while it was looked at
                if os.path.lexists(here) and not here.is_dir():
                    raise RunError(f"{here} is in the way.", "Move it away.") from error
            except BlockingIOError as error:
                raise RunError(f"Another process is making {place}.", "Wait for it to end, or give another name.") from error
        try:
            yield here
        finally:
            shutil.rmtree(here, ignore_errors=True)


def check_free(place: Path, *, folder: bool = False, example: str = "out.gguf", otherwise: str = "move it away") -> None:
    """Raises RunError if a new file, or a new folder, cannot get the name ``place``. An empty folder may stand where a folder
    goes, if it can be replaced.

    Args:
        example: what such a file may be called. otherwise: what to do besides giving another name.
    """
    if place.is_symlink():
        raise RunError(f"{place} is a link, which would be replaced.", f"Give the place it leads to: {os.path.realpath(place)}")
    inside = place / ("merged" if folder else example)
    if not place.is_dir():
        if place.exists() or place.name == "..":
            raise RunError(f"{place} is there already.", f"Give another name, or {otherwise}.")
        return
    if not folder:
        raise RunError(f"{place} is a folder.", f"Name a file in it: {inside}")
    if any(place.iterdir()):
        raise RunError(f"{place} is not empty.", "Give another folder, or move it away.")
    if os.path.samefile(place, os.curdir):
        raise RunError(f"{place} is the folder you are in, which would be replaced.", f"Name a new one in it: {inside}")
    if os.path.ismount(place):
        raise RunError(f"A disk is mounted at {place}, which cannot be replaced.", f"Name a new folder in it: {inside}")


def remove_leftovers(folder: Path) -> None:
    """Remove what a process that died was in the middle of writing (``.tmp-…``); what a living one is making stays."""
    for path in folder.glob(".tmp-*"):
        with suppress(BlockingIOError, FileNotFoundError), _locked(path):
            _remove(path)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the system's own lock on a file or a folder, where there is one; it ends with the process.

    Raises:
        BlockingIOError: another process holds it. FileNotFoundError: there is nothing at ``path``, or no longer.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            pass  # a disk without locks
        if not os.path.samestat(os.fstat(handle), os.stat(path)):  # what was removed can be locked, and by nobody else seen
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        yield
    finally:
        os.close(handle)


def _move(made: Path, place: Path) -> None:
    """Raises RunError if something came there, other than an empty folder where a folder goes."""
    try:
        if made.is_dir() and place.is_dir():
            place.rmdir()
        elif os.path.lexists(place):
            raise FileExistsError
    except OSError as error:
        raise RunError(f"{place} was made by somebody else meanwhile.", "Give another name, or move it away.") from error
    os.rename(made, place)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
