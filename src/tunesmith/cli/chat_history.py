"""Messages of earlier talks, for the up arrow: one file in the cache folder that its owner alone may read."""

import os
import re
from pathlib import Path

from prompt_toolkit.history import FileHistory, History, InMemoryHistory

KEPT, LONGEST = 2**20, 2**14
"""Bytes of the file at most, and characters of a message that is kept in it."""
PASTE = "[paste {number}: {length:,} characters]"
"""What stands for a long paste in a message as it is typed."""


class KeptHistory(FileHistory):
    """A history file. What cannot be written is left out: a talk does not end for want of it."""

    def store_string(self, string: str) -> None:
        """Append a message, unless it is long or stands for a paste that a later talk does not know."""
        if len(string) > LONGEST or re.search(r"\[paste \d+: [\d,]+ characters\]", string):
            return
        try:
            super().store_string(string)
        except (OSError, UnicodeError):
            return


def open_history(path: Path) -> History:
    """The history in that file, which is made if it is not there; one of this talk alone if that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        with open(handle, "r+b") as file:
            if os.name == "posix":
                os.fchmod(handle, 0o600)
            if os.fstat(handle).st_size > KEPT:
                _shorten(path, file.read())
    except OSError:
        return InMemoryHistory()
    return KeptHistory(str(path))


def _shorten(path: Path, content: bytes) -> None:
    """Keep the newer half, from the beginning of a message."""
    newer = content[-KEPT // 2 :]
    made = path.with_name(f"{path.name}.{os.getpid()}")
    handle = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(handle, "wb") as file:
        file.write(newer[newer.find(b"\n\n# ") + 1 :])
    made.replace(path)
