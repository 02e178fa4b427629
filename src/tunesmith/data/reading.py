"""The conversations of a data set for looking at: rows at fault are counted and left out, of very many a draw is kept."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.data.bad_rows import BadRows
from tunesmith.data.conversation import Conversation
from tunesmith.data.dataset import Dataset
from tunesmith.data.findings import Watch
from tunesmith.data.mixture import open_data
from tunesmith.errors import DataError, RowError
from tunesmith.recipe import Recipe

MOST = 100_000
"""Conversations kept."""


@dataclass(frozen=True)
class Reading:
    """conversations: training rows, or a draw of `MOST` of them, in order. held_out: held-out rows. rows: training rows that
    can be read. wanted: the row that was asked for. read_as: the columns. bad, reasons: rows at fault, and why the first
    are."""

    conversations: Sequence[Conversation]
    held_out: Sequence[Conversation]
    rows: int
    wanted: Conversation | None
    read_as: str
    bad: int
    reasons: tuple[str, ...]


def read(recipe: Recipe, data: Dataset | None, wanted: str | None, watch: Watch) -> Reading:
    """Read the recipe's data once more, past its bad rows. ``data``: as prepared for training, if that went through."""
    held_out = data.questions[:MOST] if data else []
    drawn_from_these = {question.where for question in data.questions} if data and recipe.val_size else set()
    draw, generator, bad, found = _Draw(), random.Random(recipe.seed), BadRows(), None
    read_as = ""
    total = data.facts.rows + data.facts.held_out if data else 0
    try:
        opened = open_data(recipe, bad)
        read_as = opened.describe()
        for number, conversation in enumerate(opened.conversations, 1):
            if found is None and wanted is not None and is_named(conversation.where, wanted):
                found = conversation
            if conversation.where not in drawn_from_these:
                draw.offer(conversation, generator)
            if number % 1000 == 0:
                watch("reading", number, max(number, total))
    except DataError as error:  # nothing there, or damage that ends the file
        bad(RowError(error.what, error.fix))
    if found is None and wanted is not None:
        found = next((question for question in held_out if is_named(question.where, wanted)), None)
    return Reading(draw.kept(), held_out, draw.offered, found, read_as, bad.count, tuple(bad.reasons))


def is_named(where: str, words: str) -> bool:
    """Whether a row (``rows.jsonl line 3``) is meant by ``3``, or by words that its name holds."""
    return where.rsplit(" ", 1)[-1] == words if words.isdecimal() else words in where


class _Draw:
    """At most `MOST` conversations, each of those offered as likely as any other (Vitter 1985, algorithm R)."""

    def __init__(self) -> None:
        self.offered = 0
        self._kept: list[tuple[int, Conversation]] = []

    def offer(self, conversation: Conversation, generator: random.Random) -> None:
        if len(self._kept) < MOST:
            self._kept.append((self.offered, conversation))
        elif (place := generator.randrange(self.offered + 1)) < MOST:
            self._kept[place] = (self.offered, conversation)
        self.offered += 1

    def kept(self) -> list[Conversation]:
        return [conversation for _, conversation in sorted(self._kept, key=lambda pair: pair[0])]
