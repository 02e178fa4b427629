"""A page that a command writes where the user says, and never over anything by mistake."""

from pathlib import Path

from tunesmith.errors import RunError


def check_free(page: Path, force: bool, example: str) -> None:
    """Raises RunError if the page cannot be written there; known before any work is done. example: a name for one."""
    if page.is_dir():
        raise RunError(f"{page} is a folder.", f"Name a file, such as {example}.")
    if page.exists() and not force:
        raise RunError(f"{page} is there already.", "Give another name, or add --force to overwrite it.")
    if not page.parent.is_dir():
        raise RunError(f"There is no folder {page.parent}.", "Make it, or give another --html.")


def write_page(page: Path, text: str, force: bool) -> None:
    """Raises RunError if the disk or the system refuses it."""
    try:
        with page.open("w" if force else "x", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError as error:
        raise RunError(f"{page} cannot be written: {error.strerror or error}.", "Give another --html.") from error
