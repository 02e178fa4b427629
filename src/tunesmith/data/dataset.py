"""A data set ready to train on: rows read, rendered, cut and packed, with the facts a user should see."""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from tunesmith.data.advice import ColumnsError
from tunesmith.data.bad_rows import BadRowFacts, BadRows, together
from tunesmith.data.cache import Cache
from tunesmith.data.columns import LOOKED_AT, Columns, find_columns
from tunesmith.data.cutting import cut_and_pack
from tunesmith.data.examples import Examples, Ints
from tunesmith.data.formats import Conversation, to_conversations
from tunesmith.data.held_out import brings_held_out
from tunesmith.data.mixture import check_used, open_data, times
from tunesmith.data.packing import PackedRows
from tunesmith.data.render import Example, Renderer, cut
from tunesmith.data.sources import Row, is_bundled, load_rows
from tunesmith.data.stream import ShardFacts, Shards, Stream
from tunesmith.data.tokenise import Read, Tokenised, digest, tokenise
from tunesmith.errors import DataError
from tunesmith.recipe import Recipe

STREAMED = "streaming: rows are read while others are trained on; what is told here is of the first {rows:,}"


@dataclass(frozen=True)
class DataFacts:
    """rows, held_out: counts. columns: how rows were read. max_length: tokens, longest: the longest row's. cut_rows,
    lost_tokens: rows cut and answer tokens lost by it. packed_rows: rows of max_length. tokens, trained: in an epoch.
    sha256: of the rows' messages. bad: rows left out. notes: what else the user should know."""

    rows: int
    held_out: int
    columns: str
    max_length: int
    longest: int
    cut_rows: int
    lost_tokens: int
    packed_rows: int
    tokens: int
    trained: int
    sha256: str
    bad: BadRowFacts = field(default_factory=BadRowFacts)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """rows: packed rows to train on; of a stream, those of its first shard. held_out: examples never trained on. questions:
    their conversations. facts: of the rows; of a stream, of its first shard. asides: interjections that close answers of the
    bundled data and say nothing about whether an answer is right. shards: the rows of a stream."""

    rows: PackedRows
    held_out: list[Example]
    questions: list[Conversation]
    facts: DataFacts
    asides: tuple[str, ...] = ()
    shards: Shards | None = None

    @property
    def so_far(self) -> DataFacts:
        """The facts, of a stream those of all shards that training has begun."""
        if self.shards is None or not (begun := self.shards.begun.values()):
            return self.facts
        return replace(
            self.facts, rows=sum(one.rows for one in begun), cut_rows=sum(one.cut for one in begun),
            lost_tokens=sum(one.lost for one in begun), packed_rows=sum(one.packed for one in begun),
            tokens=sum(one.tokens for one in begun), trained=sum(one.trained for one in begun),
            bad=together(one.bad for one in begun),
        )  # fmt: skip


def prepare(
    recipe: Recipe,
    renderer: Renderer,
    model_limit: int,
    watch: Callable[[int, int], None] = lambda done, total: None,
    cache: Cache | None = None,
    read: Read = lambda conversation: None,
) -> Dataset:
    """Read, render, cut and pack the recipe's data.

    Args:
        model_limit: tokens the model can see. watch: told how many rows are rendered, of how many as far as that is known.
        cache: where examples are kept for the next time. read: as `tokenise` takes it; a stream does not tell.

    Raises:
        DataError: rows that cannot be read or trained on; see the modules this calls.
    """
    stream = Stream(recipe, renderer, cache) if recipe.streaming else None
    told: Callable[[int], None] = lambda done: watch(done, done)  # noqa: E731
    made = stream.first(told) if stream else tokenise(recipe, renderer, told, cache, read)
    chosen = _drawn(recipe, made)
    order = _used(recipe, made, chosen)
    whole = made.examples.take(order)
    longest = int(whole.lengths.max())
    max_length = _max_length(recipe, longest, model_limit)
    packed = cut_and_pack(whole, recipe.packing, max_length)
    _check_trained(packed.rows, packed.trained, renderer.stop_token_ids, max_length, _mend_length(longest, model_limit))
    held_out, questions, notes = _held_out(recipe, renderer, made, chosen)
    cut_off, _, _ = cut(held_out, model_limit)
    sha256 = _fingerprint(whole, made.conversation[order], stream.contents if stream else None)
    facts = DataFacts(
        made.conversations - len(chosen), len(questions), made.read_as, max_length, longest, packed.cut, packed.lost,
        len(packed.rows), packed.tokens, packed.trained, sha256, made.bad,
        (STREAMED.format(rows=made.read), *made.notes, *notes) if stream else made.notes + notes,
    )  # fmt: skip
    shards = Shards(stream, packed.rows, ShardFacts.of(made, packed, len(chosen)), max_length) if stream else None
    asides = asides_of(recipe.dataset_name, recipe.dataset_split)
    return Dataset(packed.rows, [e for e in cut_off if e.trained], questions, facts, asides, shards)


def _used(recipe: Recipe, made: Tokenised, chosen: Sequence[int]) -> Ints:
    """Indices of the examples of an epoch, as often as their weights say. Raises DataError if there are none of some."""
    held = np.isin(made.conversation, chosen)
    uses = times(made.weights, recipe.seed)
    check_used(made.weights, uses)
    order = np.repeat(np.flatnonzero(~held), uses[made.conversation[~held]])
    if not len(order):
        raise DataError("The rows that the weights leave are all held out.", "Lower val_size, or raise a weight.")
    return order


def _max_length(recipe: Recipe, longest: int, model_limit: int) -> int:
    """Tokens of a row: as asked for, or as many as the longest row has and the model can see. Raises DataError."""
    max_length = recipe.max_length or min(longest, model_limit)
    if max_length > model_limit:
        raise DataError(
            f"max_length {max_length} is more than the {model_limit} tokens this model can see.", f"Use at most {model_limit}."
        )
    return max_length


def _mend_length(longest: int, model_limit: int) -> str:
    """What to do so that nothing is cut."""
    if longest > model_limit:
        return f"Shorten or split the rows: the longest has {longest:,} tokens, and this model sees {model_limit:,}."
    return f"Raise max_length; {longest} cuts nothing."


def _check_trained(packed: PackedRows, trained: int, stops: set[int], max_length: int, fix: str) -> None:
    """Raises DataError if cutting left no answer token to train on, or no stop token. fix: what to do about it."""
    if trained == 0:
        raise DataError(f"No answer token is left to train on: max_length {max_length} cuts every answer off.", fix)
    if not any(stops.intersection(example.labels) for row in packed for example in row):
        raise DataError(f"max_length {max_length} cuts the stop token off every answer.", fix)


def _drawn(recipe: Recipe, made: Tokenised) -> list[int]:
    """The numbers of the conversations that the seed holds out."""
    if brings_held_out(recipe):
        return []
    share = recipe.val_size * made.conversations
    count = max(round(share), int(share > 0)) if recipe.val_size < 1 else int(recipe.val_size)
    if count >= made.conversations:
        raise DataError(
            f"val_size {recipe.val_size:g} holds out all {made.conversations} rows; none is left to train on.", "Lower val_size."
        )
    return sorted(random.Random(recipe.seed).sample(range(made.conversations), count))


def _held_out(
    recipe: Recipe, renderer: Renderer, made: Tokenised, chosen: Sequence[int]
) -> tuple[list[Example], list[Conversation], tuple[str, ...]]:
    """Held-out examples and their conversations, and what the user should know of them."""
    if brings_held_out(recipe):
        name, split = (recipe.eval_dataset, "train") if recipe.eval_dataset else (recipe.dataset_name, "test")
        bad = BadRows(recipe.on_bad_row)
        rows = load_rows(name, split, bad=bad)
        questions = to_conversations(rows, _columns_of(rows, name, made.columns), bad)
        examples = renderer.examples(questions, bad=bad)
        shown = {example.where for example in examples}
        questions = [question for question in questions if question.where in shown]
        return examples, questions, (f"held out: {bad.facts.describe()}",) if bad.count else ()
    if not chosen:
        return [], [], ()
    places = np.flatnonzero(np.isin(made.conversation, chosen))
    wanted = {made.examples.where(int(place)) for place in places}
    # Read once more for the text of the few: it is not worth the memory to keep that of all.
    rest = open_data(recipe, BadRows(recipe.on_bad_row)).conversations
    found = islice((conversation for conversation in rest if conversation.where in wanted), len(wanted))
    return [made.examples[int(i)] for i in places], list(found), ()


def _columns_of(rows: Sequence[Row], name: str, trained: Columns) -> Columns:
    """Columns of held-out rows: as those that are trained on are read, where they have these. Raises DataError."""
    if set(trained.names) <= set(rows[0].values):
        return trained.as_in(rows[:LOOKED_AT])
    try:
        return find_columns(rows, name)
    except ColumnsError as error:
        raise error.without_settings("the data that are trained on") from error


def asides_of(name: str, split: str = "train") -> tuple[str, ...]:
    """What translation_extra adds to translation in the bundled data; nothing in any other."""
    if not is_bundled(name):
        return ()
    rows = load_rows(name, split)
    added = {row.values["translation_extra"].removeprefix(row.values["translation"]).strip() for row in rows}
    return tuple(sorted(added - {""}))


def fingerprint(conversations: Sequence[Conversation]) -> str:
    """SHA-256 of what conversations say, in order."""
    return hashlib.sha256(b"".join(map(digest, conversations))).hexdigest()


def _fingerprint(examples: Examples, conversation: Ints, contents: str | None = None) -> str:
    """The same from examples that were made of them; of several from one conversation, the first counts. ``contents``: what
    stands for the rows of a stream that are yet to be read."""
    first = np.diff(conversation, prepend=-1) != 0
    return hashlib.sha256(examples.digests[first].tobytes() + (contents or "").encode()).hexdigest()
