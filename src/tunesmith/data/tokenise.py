"""A data set's rows as examples: from the cache, or read, rendered and tokenised in one pass that holds few rows at a time."""

import dataclasses
import gc
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np

from tunesmith.data.bad_rows import BadRowFacts, BadRows
from tunesmith.data.batch_render import BatchRenderer
from tunesmith.data.cache import Cache, key_of
from tunesmith.data.columns import Columns
from tunesmith.data.examples import Builder, Examples, Ints
from tunesmith.data.formats import Conversation
from tunesmith.data.mixture import Floats, open_data, parts_of
from tunesmith.data.render import Renderer
from tunesmith.recipe import Recipe

CHUNK = 4096
"""Conversations in memory at once."""
LATER = {"val_size", "eval_dataset", "max_length", "packing", "shared_prefix"}
"""Settings of the data that decide what becomes of examples, not what they are."""


@dataclass(frozen=True)
class Tokenised:
    """examples: of all rows, in order. columns: how the first data set is read; read_as: how all are, in words. bad: rows
    left out. notes: what else the user should know."""

    examples: Examples
    columns: Columns
    read_as: str
    bad: BadRowFacts
    notes: tuple[str, ...] = ()

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


def tokenise(recipe: Recipe, renderer: Renderer, watch: Callable[[int], None], cache: Cache | None = None) -> Tokenised:
    """The examples of the recipe's training data.

    Args:
        watch: told how many rows are done.

    Raises:
        DataError: rows that cannot be read or trained on; see `mixture`, `formats` and `render`.
    """
    settings = {name: value for name, value in recipe.model_dump(mode="json").items() if name in _data_settings() - LATER}
    key = key_of([part.name for part in parts_of(recipe)], settings, renderer.tokenizer) if cache else None
    if cache and key and (kept := cache.load(key)):
        return _restored(*kept)
    made = _render(recipe, renderer, watch)
    if cache and key:
        facts = dataclasses.asdict(dataclasses.replace(made, examples=None))  # type: ignore[arg-type]
        cache.save(key, made.examples, facts)
    return made


def _restored(examples: Examples, facts: Mapping[str, Any]) -> Tokenised:
    columns = Columns(**{**facts["columns"], "unread": tuple(facts["columns"]["unread"])})
    bad = BadRowFacts(facts["bad"]["count"], tuple(facts["bad"]["reasons"]))
    return Tokenised(examples, columns, facts["read_as"], bad, tuple(facts["notes"]))


def _render(recipe: Recipe, renderer: Renderer, watch: Callable[[int], None]) -> Tokenised:
    bad = BadRows(recipe.on_bad_row)
    opened = open_data(recipe, bad)
    renderer, rest, builder, done = BatchRenderer.like(renderer), opened.conversations, Builder(), 0
    with _no_garbage_collection():
        while some := list(islice(rest, CHUNK)):
            start = done
            known = {conversation.where: (digest(conversation), conversation.weight) for conversation in some}
            for example in renderer.examples(some, lambda number: watch(start + number), bad):  # noqa: B023 (called at once)
                builder.add(example, *known[example.where])
            done += len(some)
    bad.check_some_left(recipe.dataset_name, len(builder))
    made = Tokenised(builder.examples(), opened.columns, opened.describe(), bad.facts)
    return dataclasses.replace(made, notes=renderer.notes(made.conversations, len(made.examples)))


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
def _no_garbage_collection() -> Iterator[None]:
    """What is made here holds no cycles, and looking for some in a million lists of tokens takes as long as making them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
