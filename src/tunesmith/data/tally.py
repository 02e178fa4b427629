"""A count of rows, and the first of them."""

from threading import Lock


class Tally:
    """Rows something was done to: how many, and the first. May be told from several threads."""

    def __init__(self) -> None:
        self.count, self.first = 0, ""
        self._lock = Lock()

    def add(self, where: str) -> None:
        with self._lock:
            self.count += 1
            self.first = self.first or where

    def __str__(self) -> str:
        return f"1 row ({self.first})" if self.count == 1 else f"{self.count:,} rows (the first is {self.first})"
