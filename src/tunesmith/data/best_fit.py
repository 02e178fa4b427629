"""Best-fit decreasing (Johnson 1973) over lengths, a million of them in a second or two.

Longest first, each into the fullest row that still has room. Examples of one length are alike and so are rows with one amount
of room, so whole runs are placed at once: a row that is the fullest one with room for a length goes on being so until it has
none.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Rows:
    """order: indices of examples, row after row, int64 ``[n]``. starts: where each row begins in it, and last n,
    int64 ``[rows + 1]``."""

    order: Ints
    starts: Ints

    def __len__(self) -> int:
        return len(self.starts) - 1

    def members(self, row: int) -> Ints:
        """Indices of the examples of a row."""
        return self.order[self.starts[row] : self.starts[row + 1]]


def one_a_row(count: int) -> Rows:
    """Every example in a row of its own."""
    return Rows(np.arange(count), np.arange(count + 1))


def best_fit(lengths: Ints, max_length: int) -> Rows:
    """Rows of at most ``max_length`` tokens for examples of these lengths; equal lengths keep their order.

    Args:
        lengths: tokens, each from 1 to ``max_length``, int64 ``[n]``.
    """
    order = np.argsort(-lengths, kind="stable")
    open_rows = _OpenRows(max_length)
    sizes, counts = np.unique(lengths, return_counts=True)
    placed = [open_rows.place(int(size), int(count)) for size, count in zip(sizes[::-1], counts[::-1])]
    row_of = np.concatenate([np.zeros(0, np.int64), *placed])
    by_row = np.argsort(row_of, kind="stable")
    return Rows(order[by_row], np.append(0, np.bincount(row_of).cumsum() if len(row_of) else row_of))


class _OpenRows:
    """Rows begun so far, by the room they have left."""

    def __init__(self, max_length: int) -> None:
        self.max_length, self.rows = max_length, 0
        self.with_room: list[list[Ints]] = [[] for _ in range(max_length + 1)]
        self.count = np.zeros(max_length + 1, np.int64)

    def place(self, size: int, count: int) -> Ints:
        """The row of each of ``count`` examples of this size."""
        placed = []
        for room in (size + np.flatnonzero(self.count[size:])).tolist():
            if not count:
                break
            taken = self._fill(self._take(room, -(-count // (room // size))), room, size, count)
            placed.append(taken)
            count -= len(taken)
        if count:
            new = np.arange(self.rows, self.rows - (-count // (self.max_length // size)))
            self.rows += len(new)
            placed.append(self._fill(new, self.max_length, size, count))
        return np.concatenate(placed)

    def _fill(self, rows: Ints, room: int, size: int, count: int) -> Ints:
        """Put as many of ``count`` examples as go into these rows, which have this much room; the row of each."""
        each = room // size
        taken = np.repeat(rows, each)[:count]
        short = len(rows) * each - len(taken)  # the last row may get fewer
        full = len(rows) - (short > 0)
        self._give(rows[:full], room - each * size)
        self._give(rows[full:], room - (each - short) * size)
        return taken

    def _take(self, room: int, most: int) -> Ints:
        """At most so many of the rows with this much room."""
        rows = np.concatenate(self.with_room[room])
        self.count[room] = 0
        self.with_room[room] = []
        self._give(rows[most:], room)
        return rows[:most]

    def _give(self, rows: Ints, room: int) -> None:
        if len(rows):
            self.with_room[room].append(rows)
            self.count[room] += len(rows)
