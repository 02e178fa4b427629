"""A data set's rows as examples: from the cache, or read, rendered and tokenised in one pass that holds few rows at a time."""

import dataclasses
import gc
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np

from tunesmith.data.bad_rows import BadRowFacts, BadRows
from tunesmith.data.batch_render import BatchRenderer
from tunesmith.data.cache import Cache, contents_of, key_of
from tunesmith.data.columns import Columns
from tunesmith.data.examples import Builder, Examples, Ints
from tunesmith.data.formats import Conversation
from tunesmith.data.mixture import Floats, open_data, parts_of
from tunesmith.data.render import Renderer
from tunesmith.recipe import Recipe

Read = Callable[[Conversation], None]
CHUNK, CHARACTERS = 4096, 2**24
"""Conversations in memory at once, or fewer that have so many characters."""
LATER = {"val_size", "eval_dataset", "max_length", "packing", "shared_prefix", "streaming"}
"""Settings of the data that decide what becomes of examples, not what they are."""


@dataclass(frozen=True)
class Tokenised:
    """examples: of all rows, in order. columns: how the first data set is read; read_as: how all are, in words. bad: rows
    left out. notes: what else the user should know. read: conversations they were made from, those found bad later included."""

    examples: Examples
    columns: Columns
    read_as: str
    bad: BadRowFacts
    notes: tuple[str, ...] = ()
    read: int = 0

    @cached_property
    def conversation(self) -> Ints:
        """The number of the conversation each example is of, int64 ``[n]``: neighbours from one row are of one."""
        where = np.stack([self.examples.stem, self.examples.number])
        return np.diff(where, axis=1, prepend=where[:, :1]).any(0).cumsum()

    @property
    def conversations(self) -> int:
        """How many there are."""
        return int(self.conversation[-1]) + 1 if len(self.examples) else 0

    @property
    def weights(self) -> Floats:
        """How often each conversation is used in an epoch, float64 ``[conversations]``."""
        return self.examples.weights[np.diff(self.conversation, prepend=-1) != 0]


def tokenise(
    recipe: Recipe,
    renderer: Renderer,
    watch: Callable[[int], None],
    cache: Cache | None = None,
    read: Read = lambda conversation: None,
) -> Tokenised:
    """The examples of the recipe's training data.

    Args:
        watch: told how many rows are done. read: told of every conversation that is read, none if they come from the cache.

    Raises:
        DataError: rows that cannot be read or trained on; see `mixture`, `formats` and `render`.
    """
    files = contents(recipe) if cache else None
    key = key_of(files, data_settings(recipe), renderer.tokenizer) if files else None
    if found := kept(cache, key):
        return found
    data = Tokeniser(recipe, renderer)
    made = data.take(_told(data.conversations, read), watch)
    made.bad.check_some_left(recipe.dataset_name, len(made.examples))
    keep(cache, key, made)
    return made


def _told(conversations: Iterator[Conversation], read: Read) -> Iterator[Conversation]:
    for conversation in conversations:
        read(conversation)
        yield conversation


def kept(cache: Cache | None, key: str | None) -> Tokenised | None:
    """What the cache holds under a key."""
    found = cache.load(key) if cache and key else None
    if found is None:
        return None
    examples, facts = found
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in facts["columns"].items()}
    bad = BadRowFacts(facts["bad"]["count"], tuple(facts["bad"]["reasons"]))
    return Tokenised(examples, Columns(**fields), facts["read_as"], bad, tuple(facts["notes"]), facts["read"])


def keep(cache: Cache | None, key: str | None, made: Tokenised) -> None:
    """Keep it there."""
    if cache and key:
        cache.save(key, made.examples, dataclasses.asdict(dataclasses.replace(made, examples=None)))  # type: ignore[arg-type]


class Tokeniser:
    """The data of a recipe, opened. conversations: to be read once, in order. bad: told of rows at fault.

    Raises:
        DataError: see `open_data`.
    """

    def __init__(self, recipe: Recipe, renderer: Renderer) -> None:
        self.bad = BadRows(recipe.on_bad_row)
        self.opened = open_data(recipe, self.bad)
        self.conversations = self.opened.conversations
        self.renderer = BatchRenderer.like(renderer)

    def take(self, conversations: Iterator[Conversation], watch: Callable[[int], None]) -> Tokenised:
        """The examples of some of the conversations, or of all. ``watch``: told how many are done."""
        builder, done = Builder(), 0
        unknown = self.renderer.unknown_id
        with no_garbage_collection():
            while some := list(up_to(conversations, CHUNK, CHARACTERS)):
                start = done
                known = {conversation.where: (digest(conversation), conversation.weight) for conversation in some}
                for example in self.renderer.examples(some, lambda number: watch(start + number), self.bad):  # noqa: B023
                    builder.add(example, *known[example.where])
                    if unknown is not None and unknown in example.labels:
                        self.renderer.unknown.add(example.where)
                done += len(some)
        made = Tokenised(builder.examples(), self.opened.columns, self.opened.describe(), self.bad.taken(), read=done)
        notes = self.renderer.notes(made.conversations, len(made.examples))
        return dataclasses.replace(made, notes=(*self.opened.notes, *notes))


def up_to(conversations: Iterator[Conversation], rows: int, characters: int) -> Iterator[Conversation]:
    """The next conversations, so many rows of them, or fewer that have so many characters; none beyond is read."""
    for conversation in islice(conversations, rows):
        yield conversation
        characters -= sum(len(message.content) for message in conversation.messages)
        if characters <= 0:
            return


def contents(recipe: Recipe) -> str | None:
    """SHA-256 of the recipe's files, as `contents_of`."""
    return contents_of([part.name for part in parts_of(recipe)])


def data_settings(recipe: Recipe) -> dict[str, Any]:
    """The settings that change examples, as JSON."""
    return {name: value for name, value in recipe.model_dump(mode="json").items() if name in _data_settings() - LATER}


def digest(conversation: Conversation) -> bytes:
    """16 bytes that stand for all a conversation says."""
    said = hashlib.blake2b(digest_size=16)
    for message in conversation.messages:
        said.update(f"{message.role}\0{message.content}\0".encode("utf-8", "surrogatepass"))
        if message.more or not message.train:
            said.update(json.dumps([message.train, dict(message.more)], sort_keys=True).encode())
    if conversation.tools:
        said.update(json.dumps(conversation.tools, sort_keys=True).encode())
    return said.digest()


def _data_settings() -> set[str]:
    extra = {name: field.json_schema_extra for name, field in Recipe.model_fields.items()}
    return {name for name, more in extra.items() if isinstance(more, dict) and more["group"] == "data"}


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """What is made here holds no cycles, and looking for some in a million lists of tokens takes as long as making them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
