"""What comes next, made in a thread while what came last is being used."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")

_made_here = threading.local()  # left: of every `ahead` that what this thread makes is for


class _LeftError(Exception):
    """Nobody waits for what was being made."""


def ahead(items: Iterator[Item], name: str) -> Iterator[Item]:
    """The same items, each made while the one before is in use; what making one raises is raised where it is asked for. Whoever
    leaves before the end waits only until what is being made comes to its next `check_wanted`.

    Args:
        items: none of them None. name: of the thread.
    """
    left, outer = threading.Event(), getattr(_made_here, "left", ())

    def begin() -> None:
        _made_here.left = (*outer, left)

    with ThreadPoolExecutor(1, name, begin) as pool:
        try:
            coming = pool.submit(next, items, None)
            while (item := coming.result()) is not None:
                coming = pool.submit(next, items, None)
                yield item
        finally:
            left.set()


def check_wanted() -> None:
    """For what takes long to make: ends it where nobody waits for it any more. Does nothing in threads that are not `ahead`'s."""
    if any(left.is_set() for left in getattr(_made_here, "left", ())):
        raise _LeftError
