"""The conversations of a data set for looking at: rows at fault are counted and left out, of very many a draw is kept."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.data.bad_rows import BadRowFacts, BadRows
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
    can be read. wanted: the row that was asked for. read_as: the columns. bad: rows at fault. damage: what ended the reading
    before its end, if anything did. fault: what is wrong with the row that was asked for."""

    conversations: Sequence[Conversation]
    held_out: Sequence[Conversation]
    rows: int
    wanted: Conversation | None
    read_as: str
    bad: BadRowFacts
    damage: str
    fault: str


class Overheard:
    """The conversations that a preparation reads, so that they need not be read again. conversations: of so many that a draw has
    to be made of them, and of those that come from the cache, there are none here."""

    def __init__(self) -> None:
        self.conversations: list[Conversation] = []
        self._count = 0

    def __call__(self, conversation: Conversation) -> None:
        self._count += 1
        if self._count <= MOST:
            self.conversations.append(conversation)
        else:
            self.conversations = []


def read(recipe: Recipe, data: Dataset | None, wanted: str | None, watch: Watch, overheard: Overheard) -> Reading:
    """The recipe's data past its bad rows, read once more if need be. ``data``: as prepared for training, if that went through,
    ``overheard`` on the way."""
    held_out = data.questions[:MOST] if data else []
    drawn_from_these = {question.where for question in data.questions} if data and recipe.val_size else set()
    draw, generator, bad, found = _Draw(), random.Random(recipe.seed), _Faults(wanted), None
    read_as = damage = ""
    total = data.facts.rows + data.facts.held_out if data else 0
    try:
        if data and overheard.conversations and wanted is None:
            read_as, conversations = data.facts.columns, iter(overheard.conversations)
        else:
            opened = open_data(recipe, bad)
            read_as, conversations = opened.describe(), opened.conversations
        for number, conversation in enumerate(conversations, 1):
            if found is None and wanted is not None and is_named(conversation.where, wanted):
                found = conversation
            if conversation.where not in drawn_from_these:
                draw.offer(conversation, generator)
            if number % 1000 == 0:
                watch("reading", number, max(number, total))
    except DataError as error:  # nothing there, no good row there, or damage that ends the file
        damage = error.what
    if found is None and wanted is not None:
        found = next((question for question in held_out if is_named(question.where, wanted)), None)
    return Reading(draw.kept(), held_out, draw.offered, found, read_as, bad.facts, damage, bad.of_wanted)


def is_named(where: str, words: str) -> bool:
    """Whether a row (``rows.jsonl line 3``) is meant by ``3``, or by words that its name holds."""
    return where.rsplit(" ", 1)[-1] == words if words.isdecimal() else words in where


class _Faults(BadRows):
    """Rows at fault, and what is wrong with the one that was asked for."""

    def __init__(self, wanted: str | None) -> None:
        super().__init__()
        self.wanted, self.of_wanted = wanted, ""

    def __call__(self, error: RowError) -> None:
        super().__call__(error)
        where = re.match(r".*? (?:line|row) [0-9]+", error.what, re.DOTALL)
        if where and self.wanted is not None and is_named(where[0], self.wanted):
            self.of_wanted = self.of_wanted or error.what


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
