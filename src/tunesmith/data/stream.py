"""Rows that are tokenised while others are trained on: a data set in shards, read in order, the next one made ahead.

A shard is so many rows as they stand in the file. It is rendered, cut and packed as a whole data set would be, and its packed
rows are shuffled among themselves. An epoch is all shards, in order.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

from tunesmith.data.ahead import ahead, check_wanted
from tunesmith.data.bad_rows import BadRowFacts
from tunesmith.data.cache import Cache, key_of
from tunesmith.data.cutting import CutRows, cut_and_pack
from tunesmith.data.packing import PackedRows
from tunesmith.data.render import Renderer
from tunesmith.data.tokenise import Tokenised, Tokeniser, contents, data_settings, keep, kept, up_to
from tunesmith.recipe import Recipe

SHARD, SHARD_CHARACTERS = 50_000, 2**27
"""Rows of a shard, or fewer that have so many characters: some thirty million tokens, 170 MB."""


@dataclass(frozen=True)
class ShardFacts:
    """A shard that training began: its rows, packed rows, tokens, trained tokens, rows cut and answer tokens lost by it, and
    rows left out."""

    rows: int
    packed: int
    tokens: int
    trained: int
    cut: int
    lost: int
    bad: BadRowFacts

    @staticmethod
    def of(made: Tokenised, rows: CutRows, held_out: int = 0) -> "ShardFacts":
        return ShardFacts(
            made.conversations - held_out, len(rows.rows), rows.tokens, rows.trained, rows.cut, rows.lost, made.bad
        )  # fmt: skip


class Stream:
    """The shards of a recipe's data.

    Args:
        shard, characters: how many rows a shard holds at most, and about how many characters.

    Attributes:
        contents: SHA-256 of the files, None for rows of the hub.
    """

    def __init__(
        self, recipe: Recipe, renderer: Renderer, cache: Cache | None, shard: int = SHARD, characters: int = SHARD_CHARACTERS
    ) -> None:
        self.recipe, self.renderer, self.cache, self.limits = recipe, renderer, cache, (shard, characters)
        self.contents = contents(recipe)
        self._open: tuple[Tokeniser, int] | None = None  # a file that is being read, and the shard it is read up to

    def first(self, watch: Callable[[int], None]) -> Tokenised:
        """The first shard. Raises DataError as `tokenise`."""
        made = next(self._shards(0, watch), None)
        assert made is not None  # a data set without rows is refused when it is opened
        return made

    def since(self, number: int) -> Iterator[Tokenised]:
        """The shards from this one on, each made while the one before is in use. Raises DataError where a bad row is reached."""
        return ahead(self._shards(number), "rows")

    def _shards(self, start: int, watch: Callable[[int], None] = lambda done: check_wanted()) -> Iterator[Tokenised]:
        for number in count(start):
            key = self._key(number)
            made = kept(self.cache, key)
            if made is None:
                made = self._read(number, watch)
                keep(self.cache, key, made)
            if made.read or made.bad.count:
                yield made
            if not made.read:
                return

    def _read(self, number: int, watch: Callable[[int], None]) -> Tokenised:
        """Render a shard; those before it that have not been read are read over."""
        file, place = self._open or (None, 0)
        self._open = None  # a shard that fails leaves nothing to go on from
        if file is None or place > number:
            file, place = Tokeniser(self.recipe, self.renderer), 0
        for _ in range(place, number):
            check_wanted()
            for _ in up_to(file.conversations, *self.limits):
                pass
            file.bad.taken()
        made = file.take(up_to(file.conversations, *self.limits), watch)
        if not number:
            made.bad.check_some_left(self.recipe.dataset_name, len(made.examples))
        self._open = file, number + 1
        return made

    def _key(self, number: int) -> str | None:
        if self.contents is None:
            return None
        return key_of(self.contents, {**data_settings(self.recipe), "shard": [*self.limits, number]}, self.renderer.tokenizer)


@dataclass(frozen=True, eq=False)
class Shards:
    """The packed rows of a stream. first: those of its first shard, which held-out rows were taken from; facts: of it.
    begun: what is known of the shards that training has begun."""

    stream: Stream
    first: PackedRows
    facts: ShardFacts
    max_length: int
    begun: dict[int, ShardFacts] = field(default_factory=dict)

    def since(self, number: int) -> Iterator[PackedRows]:
        """The packed rows of the shards from this one on."""
        if number == 0:
            self.begun[0] = self.facts
            yield self.first
        first = max(number, 1)
        for place, made in enumerate(self.stream.since(first), first):
            rows = cut_and_pack(made.examples, self.stream.recipe.packing, self.max_length)
            self.begun[place] = ShardFacts.of(made, rows)
            yield rows.rows
