"""What comes next, made in a thread while what came last is being used."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def ahead(items: Iterator[Item], name: str) -> Iterator[Item]:
    """The same items, each made while the one before is in use; what making one raises is raised where it is asked for.

    Args:
        items: none of them None. name: of the thread.
    """
    with ThreadPoolExecutor(1, name) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item
