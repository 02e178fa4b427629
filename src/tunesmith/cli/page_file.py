"""A page that a command writes where the user says, and never over anything by mistake."""

from pathlib import Path

from tunesmith.errors import RunError
from tunesmith.training.workshop import check_free


def check_page(page: Path, force: bool, example: str) -> None:
    """Raises RunError if the page cannot be written there; known before any work is done.

    Args:
        force: write it over a file, or to a device such as /dev/stdout, that is there. example: what it may be called.
    """
    if not page.parent.is_dir():
        raise RunError(f"There is no folder {page.parent}.", "Make it, or give another --html.")
    if not force or page.is_dir():
        check_free(page, example=example, otherwise="add --force to overwrite it")


def write_page(page: Path, text: str, force: bool) -> None:
    """Raises RunError if the disk or the system refuses it."""
    try:
        with page.open("w" if force else "x", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError as error:
        raise RunError(f"{page} cannot be written: {error.strerror or error}.", "Give another --html.") from error
