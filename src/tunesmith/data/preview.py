"""A data set as a training run would take it, for someone to look at before the run: `preview` gathers, others draw."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from tunesmith.data.advice import ColumnsError
from tunesmith.data.bad_rows import BadRowFacts, BadRows, together
from tunesmith.data.batch_render import BatchRenderer
from tunesmith.data.cache import Cache
from tunesmith.data.controls import special_ids
from tunesmith.data.conversation import Conversation
from tunesmith.data.dataset import Dataset, prepare
from tunesmith.data.findings import Finding, Watch, find, said, system_prompts
from tunesmith.data.lengths import Cut, Lengths, cut_of, lengths_of
from tunesmith.data.loader import Loader, computed_tokens, default_batch_size
from tunesmith.data.mixture import names_of
from tunesmith.data.pieces import Piece, pieces_of
from tunesmith.data.reading import Overheard, Reading, read
from tunesmith.data.render import Example, Renderer
from tunesmith.data.tokenise import no_garbage_collection
from tunesmith.errors import DataError, ModelError, RowError
from tunesmith.recipe import Recipe

MEASURED = 5_000
"""Rows rendered once more to see them whole, drawn if there are more."""
UPDATES = 24
"""Updates whose packs are made to see what a shared prefix saves."""
LONGEST_SHOWN = 400
"""Tokens shown of a row that nobody asked for by name."""

GOOD, LOOK, WILL_NOT = "good", "look at this", "will not train"


@dataclass(frozen=True)
class ShownRow:
    """A row as tokens. tokens, trained: how many it has, of which ``pieces`` may leave some out."""

    where: str
    tokens: int
    trained: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Packing:
    """strategy: how. packed_rows: rows of max_length. filled: share of their slots that hold a token. per_row: examples each
    holds on average."""

    strategy: str
    packed_rows: int
    filled: float
    per_row: float


@dataclass(frozen=True)
class Prefix:
    """Tokens that rows begin with in common and that are computed once a pack. on: whether the recipe has it so. text,
    tokens: the commonest one. different: how many there are. saved: share of an epoch's tokens that need no computing."""

    on: bool
    text: str
    tokens: int
    different: int
    saved: float


@dataclass(frozen=True)
class Verdict:
    """word: good, look at this, or will not train. reasons: why. fix: what to do. settings: those of a recipe to change first,
    as far as they would mend it."""

    word: str
    reasons: tuple[str, ...]
    fix: str
    settings: dict[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True)
class Preview:
    """A data set before training. rows, held_out: counts; looked_at: of these rows, those whose texts were compared.
    read_as: the columns. bad: those that cannot be trained on. notes: what else the user should know. What could not be found
    out because the data cannot be trained on is None."""

    model: str
    data: str
    rows: int
    held_out: int
    looked_at: int
    read_as: str
    stop_token: str
    shown: tuple[ShownRow, ...]
    lengths: Lengths | None
    cut: Cut | None
    packing: Packing | None
    prefix: Prefix | None
    system_prompts: tuple[tuple[str, int], ...]
    bad: BadRowFacts
    notes: tuple[str, ...]
    findings: tuple[Finding, ...]
    verdict: Verdict


def preview(
    recipe: Recipe, renderer: Renderer, model_limit: int, rows: int = 3, row: str | None = None,
    watch: Watch = lambda what, done, total: None, cache: Cache | None = None,
) -> Preview:  # fmt: skip
    """Prepare the recipe's data as a run would, and look at it.

    Args:
        model_limit: tokens the model can see. rows: how many to show. row: show this one instead, by its number or the
        words that name it. watch: told what is being done, and how much of it. cache: as `prepare` takes it.

    Raises:
        DataError: ``row`` names none. Data that cannot be trained on are no error here: the verdict says so.
    """
    with no_garbage_collection():
        return _look(recipe, renderer, model_limit, rows, row, watch, cache)


def _look(
    recipe: Recipe, renderer: Renderer, model_limit: int, rows: int, row: str | None, watch: Watch, cache: Cache | None
) -> Preview:  # fmt: skip
    data, problem, overheard = _prepare(recipe, renderer, model_limit, watch, cache)
    reading = read(recipe, data, row, watch, overheard)
    examples, faults = _render(renderer, reading.conversations, recipe.seed, watch)
    texts = list(map(said, reading.conversations))
    findings = find(texts, list(map(said, reading.held_out)), watch) if texts else ()
    limit = data.facts.max_length if data else min([recipe.max_length or model_limit, model_limit, _longest(examples)])
    wrapped = recipe.packing == "wrapped"  # no row is cut: they are one stream
    cut = _cut(recipe, examples, limit, renderer, data) if examples and not wrapped else None
    bad = data.facts.bad if data else together([reading.bad, faults])
    return Preview(
        model=recipe.model_name_or_path,
        data=recipe.dataset_name,
        rows=data.facts.rows if data else reading.rows,
        held_out=data.facts.held_out if data else 0,
        looked_at=len(texts),
        read_as=reading.read_as,
        stop_token=renderer.tokenizer.convert_ids_to_tokens(renderer.stop_token_id),
        shown=_shown(recipe, renderer, reading, examples, rows, row, model_limit if wrapped else limit),
        lengths=lengths_of(examples) if examples else None,
        cut=cut,
        packing=_packing(recipe, data) if data else None,
        prefix=_prefix(recipe, renderer, data, watch) if data else None,
        system_prompts=system_prompts(texts),
        bad=bad,
        notes=data.facts.notes if data else (),
        findings=findings,
        verdict=_verdict(recipe, problem, reading.damage, cut, bad.count, findings, model_limit),
    )


def _prepare(
    recipe: Recipe, renderer: Renderer, model_limit: int, watch: Watch, cache: Cache | None
) -> tuple[Dataset | None, DataError | ModelError | None, Overheard]:
    """The data as a run prepares them, and why a run would not: a bad row ends a run, and is left out here to see the rest."""
    problem = None
    for attempt in (recipe, recipe.model_copy(update={"on_bad_row": "skip"})):
        overheard = Overheard()
        try:
            told: Callable[[int, int], None] = lambda done, total: watch("rows", done, total)  # noqa: E731
            return prepare(attempt, renderer, model_limit, told, cache, overheard), problem, overheard
        except (DataError, ModelError) as error:
            problem = problem or error
            if not isinstance(error, RowError):
                break
    return None, problem, Overheard()


def _longest(examples: Sequence[Example]) -> int:
    return max((len(example.input_ids) for example in examples), default=1)


def _render(
    renderer: Renderer, conversations: Sequence[Conversation], seed: int, watch: Watch
) -> tuple[list[Example], BadRowFacts]:
    """Examples of the conversations or a draw of them, and why others could not be rendered."""
    chosen: Sequence[Conversation] = conversations
    if len(conversations) > MEASURED:
        chosen = [conversations[i] for i in sorted(random.Random(seed).sample(range(len(conversations)), MEASURED))]
    faults = BadRows()
    try:
        return BatchRenderer.like(renderer).examples(chosen, lambda done: watch("lengths", done, len(chosen)), faults), faults.facts
    except ModelError as error:  # of the template, so of all rows
        return [], BadRowFacts(len(chosen), (error.what,))


def _cut(
    recipe: Recipe, examples: Sequence[Example], max_length: int, renderer: Renderer, data: Dataset | None
) -> Cut:  # fmt: skip
    """What is cut: counted by the preparation itself where it went through, else from the rows measured."""
    cut = cut_of(examples, max_length, renderer.stop_token_ids)
    if data is None or data.facts.rows == cut.of_rows:
        return cut
    facts, kept = data.facts, len(data.rows.examples)
    # A mixture uses rows several times, some templates make several examples of a row: then those measured must do.
    whole_answers = cut.whole_answers if recipe.datasets or kept > data.facts.rows else data.facts.rows - kept
    return replace(
        cut, of_rows=facts.rows, rows=facts.cut_rows, answer_tokens=facts.lost_tokens,
        of_answer_tokens=facts.trained + facts.lost_tokens, whole_answers=whole_answers,
        shortest=facts.longest,
    )  # fmt: skip


def _packing(recipe: Recipe, data: Dataset) -> Packing:
    slots = len(data.rows) * data.facts.max_length
    examples = data.facts.rows if recipe.packing == "wrapped" else len(data.rows.examples)
    return Packing(recipe.packing, len(data.rows), data.facts.tokens / slots, examples / len(data.rows))


def _prefix(recipe: Recipe, renderer: Renderer, data: Dataset, watch: Watch) -> Prefix:
    """What the packs of some updates share, made by the loader that trains."""
    watch("shared prefixes", 0, 1)
    facts, epochs, accumulation = data.facts, recipe.num_train_epochs, recipe.gradient_accumulation_steps
    batch = recipe.per_device_train_batch_size
    batch = batch or default_batch_size(len(data.rows), computed_tokens(data.rows, facts.max_length), epochs, accumulation)
    loader = Loader(data.rows, batch, accumulation, recipe.shuffle, recipe.seed)
    found: Counter[tuple[int, ...]] = Counter()
    computed = saved = 0
    for pack in (pack for window in loader.sample(UPDATES) for pack in window):
        lengths, parents = pack.segments.lengths, pack.segments.parents
        ids, start = pack.input_ids.tolist(), 0
        children = Counter(parent for parent in parents if parent >= 0)
        for index, length in enumerate(lengths):
            if index in children:
                found[tuple(ids[start : start + length])] += children[index]
                saved += (children[index] - 1) * length
            start += length
        computed += len(ids)
    watch("shared prefixes", 1, 1)
    most = max(found, key=lambda tokens: found[tokens], default=())
    text = renderer.tokenizer.decode(list(most), skip_special_tokens=False) if most else ""
    return Prefix(recipe.shared_prefix, text, len(most), len(found), saved / max(computed + saved, 1))


def _shown(
    recipe: Recipe, renderer: Renderer, reading: Reading, examples: Sequence[Example], rows: int, row: str | None, limit: int
) -> tuple[ShownRow, ...]:
    """The row asked for; or the first, the longest and a draw of the others."""
    special = special_ids(renderer.tokenizer)
    if row is None:
        chosen = _some(examples, rows, recipe.seed)
    elif reading.wanted is not None:
        chosen = renderer.examples([reading.wanted])
    elif reading.fault:
        raise DataError(f"Row {row} cannot be shown: {reading.fault}", "Mend it first.")
    else:
        raise DataError(f"There is no row {row} in {recipe.dataset_name}.", "Give a number as rows are named, such as --row 3.")
    return tuple(_show(example, renderer, special, limit, None if row is not None else LONGEST_SHOWN) for example in chosen)


def _some(examples: Sequence[Example], count: int, seed: int) -> list[Example]:
    """The first, the longest, and a draw of the others."""
    order = random.Random(seed).sample(range(len(examples)), len(examples))
    longest = [max(order, key=lambda i: len(examples[i].input_ids))] if order else []
    return [examples[i] for i in list(dict.fromkeys([*sorted(order)[:1], *longest, *order]))[:count]]


def _show(example: Example, renderer: Renderer, special: set[int], limit: int, most: int | None) -> ShownRow:
    pieces = pieces_of(example, renderer.tokenizer, special, limit, most)
    return ShownRow(example.where, len(example.input_ids), example.trained, tuple(pieces))


def _verdict(
    recipe: Recipe, problem: DataError | ModelError | None, damage: str, cut: Cut | None, bad: int, findings: Sequence[Finding],
    model_limit: int,
) -> Verdict:  # fmt: skip
    """Will not train if the preparation refused; worth a look if something is cut, left out or found; else good."""
    mends = cut and cut.answer_tokens and cut.shortest <= model_limit
    longer: dict[str, str | int] = {"max_length": cut.shortest} if cut and mends else {}
    if problem is not None:
        others = (f"bad rows: {bad:,}",) if isinstance(problem, RowError) and bad > 1 and not damage else ()
        what = (damage,) if problem.what in damage else (problem.what, damage) if damage else (problem.what,)
        return Verdict(WILL_NOT, what + others, problem.fix, _mending(recipe, problem, damage, cut, longer))
    reasons, fixes = [], []
    if cut and cut.answer_tokens:
        share = cut.answer_tokens / cut.of_answer_tokens
        reasons.append(f"max_length {cut.max_length} cuts {cut.answer_tokens:,} answer tokens off ({share:.1%})")
        too_long = f"This model sees {model_limit:,} tokens: split the longest rows."
        fixes.append(f"Raise max_length: {cut.shortest} cuts nothing." if longer else too_long)
    if bad:
        reasons.append(f"bad rows, left out: {bad:,}")
        fixes.append("Mend them.")
    looked_into = [finding for finding in findings if finding.worth_a_look]
    reasons += [f"{finding.title}: {finding.count:,} of {finding.looked_at:,}" for finding in looked_into]
    fixes += [finding.fix for finding in looked_into]
    return Verdict(LOOK, tuple(reasons), fixes[0], longer) if reasons else Verdict(GOOD, (), "")


def _mending(
    recipe: Recipe, problem: DataError | ModelError, damage: str, cut: Cut | None, longer: dict[str, str | int]
) -> dict[str, str | int]:
    """Settings with which the preparation would not refuse, as far as settings can do it."""
    if isinstance(problem, ColumnsError):  # those of a mixture stand in its own entries, and several files need not have the same
        return {} if recipe.datasets or len(names_of(recipe.dataset_name)) > 1 else {**problem.certain}
    settings: dict[str, str | int] = longer if cut and cut.whole_answers == cut.of_rows else {}
    return {**settings, "on_bad_row": "skip"} if isinstance(problem, RowError) and cut and not damage else settings
