"""Base against tuned, from one loaded model: the same rows answered and scored with the adapter and without it."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from tunesmith.data.conversation import Conversation
from tunesmith.data.example import IGNORE, Example, cut
from tunesmith.data.render import Renderer
from tunesmith.errors import DataError
from tunesmith.generate.engine import Sampling, generate
from tunesmith.generate.measure import Measure, measure
from tunesmith.generate.score import chrf, exact_matches
from tunesmith.generate.session import Session
from tunesmith.generate.suite import SUITES, general_texts, load_items
from tunesmith.generate.verdict import Verdict, figures, forgetting, verdict

LONGEST = 512
"""Tokens of an answer, at most."""
LOST = 100.0
"""Nats a token that a loss counts for which is no number."""
FIRST, TOGETHER = 8, 40
"""Rows answered before the clock is first looked at, and between two looks after that."""

Losses = Callable[[Sequence[Example], bool], list[tuple[float, int]]]
"""Of examples, and whether without the adapter: each one's loss in nats summed over its trained tokens, and their count."""
Told = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Side:
    """One model's answer to a row. tokens: with its stop token. stopped: whether it came to one. right: the expected answer.
    chrf: 0 to 100. loss: of the row's own answers, nats a token."""

    text: str
    tokens: int
    stopped: bool
    right: bool
    chrf: float
    loss: float


@dataclass(frozen=True)
class ComparedRow:
    """A row with both answers to its last question. where: the row it comes from."""

    where: str
    question: str
    expected: str
    before: Side
    after: Side

    @property
    def gain(self) -> tuple[float, float]:
        """How much better the answer has become: in chrF, and then in loss."""
        return self.after.chrf - self.before.chrf, self.before.loss - self.after.loss


@dataclass(frozen=True)
class Comparison:
    """rows: those answered, in their order. measures: over rows. abilities: of suites and general text. verdict, forgetting:
    in a word, with the reason. notes: what else the reader should know."""

    rows: tuple[ComparedRow, ...]
    measures: tuple[Measure, ...]
    abilities: tuple[Measure, ...]
    verdict: Verdict
    forgetting: Verdict
    notes: tuple[str, ...]

    @property
    def facts(self) -> dict[str, str]:
        """Both verdicts and every measure, each in a line."""
        said = {"tuned against base": self.verdict, "forgetting": self.forgetting}
        lines = {one.name: f"{figures(one)}{f': {one.word}' if one.word else ''}" for one in (*self.measures, *self.abilities)}
        return {**{name: f"{verdict.word} ({verdict.reason})" for name, verdict in said.items()}, **lines}

    @property
    def right(self) -> tuple[int, int]:
        """How many answers were the expected ones, before and after."""
        return sum(row.before.right for row in self.rows), sum(row.after.right for row in self.rows)

    @property
    def by_gain(self) -> list[ComparedRow]:
        """The rows, those that became worse first."""
        return sorted(self.rows, key=lambda row: row.gain)


def compare(
    session: Session, rows: Sequence[Conversation], losses: Losses, asides: Sequence[str] = (), *,
    answers: int | None = None, seconds: float = math.inf, suites: bool = True, told: Told = lambda what, done, total: None,
) -> Comparison:  # fmt: skip
    """Compare the model of a session with and without its adapter.

    Args:
        rows: held out, at least one. asides: see `exact_matches`. answers: answer so many rows at most, spread over all.
        seconds: begin no more answers after so long. suites: ask the suites too, or look at general text only.
        told: what is being done, and how much of it is done.
    """
    limit = session.context
    renderer = session.renderer if session.renderer.assistant_only else Renderer(session.renderer.tokenizer)
    told("losses", 0, 2)
    known = _losses_of_rows(renderer, rows, losses, limit, told)
    shown = _answerable(session, [row for row in rows if row.where in known], answers, limit)
    compared = _compared(session, shown, known, asides, seconds, told)
    notes = _notes(rows, known, shown, compared)
    measures = _measures(list(known.values()), compared)
    text = _general_text(session, losses, limit)
    abilities = _suites(session, told) if suites else []
    every = abilities[-1] if abilities else None
    judged = verdict({one.name: one for one in measures})
    lost = forgetting(text, every)
    return Comparison(tuple(compared), tuple(measures), (*abilities, text, _perplexity(text)), judged, lost, tuple(notes))


def as_json(compared: Comparison) -> dict[str, Any]:
    """The comparison as JSON: what its classes hold, rows sorted by gain, and each measure's word."""
    measures = {name: [{**asdict(one), "word": one.word} for one in getattr(compared, name)] for name in ("measures", "abilities")}
    return {**asdict(compared), **measures, "rows": [asdict(row) for row in compared.by_gain]}


@dataclass(frozen=True)
class _Loss:
    """A row's loss before and after, in nats, summed over so many tokens."""

    before: float
    after: float
    tokens: int

    def mean(self, side: str) -> float:
        return float(getattr(self, side)) / self.tokens


def _losses_of_rows(renderer: Renderer, rows: Sequence[Conversation], losses: Losses, limit: int, told: Told) -> dict[str, _Loss]:
    """The loss of each row's answers by the row's place; rows without any within the model's reach are left out."""
    skipped: list[Exception] = []
    examples, _, _ = cut(renderer.examples(rows, bad=skipped.append), limit)
    before = losses(examples, True)
    told("losses", 1, 2)
    after = losses(examples, False)
    told("losses", 2, 2)
    sums: dict[str, _Loss] = {}
    for example, (untuned, tokens), (tuned, _) in zip(examples, before, after):
        so_far = sums.get(example.where, _Loss(0.0, 0.0, 0))
        totals = so_far.before + _finite(untuned, tokens), so_far.after + _finite(tuned, tokens)
        sums[example.where] = _Loss(*totals, so_far.tokens + tokens)
    return {where: loss for where, loss in sums.items() if loss.tokens}


def _finite(total: float, tokens: int) -> float:
    return total if math.isfinite(total) else LOST * tokens


def spread(count: int, most: int | None) -> list[int]:
    """Which of so many rows to take if only ``most`` are wanted: some from everywhere."""
    return list(range(count)) if most is None or most >= count else [i * count // most for i in range(most)]


@dataclass(frozen=True)
class _Asked:
    row: Conversation
    prompt: list[int]


def _answerable(session: Session, rows: Sequence[Conversation], most: int | None, limit: int) -> list[_Asked]:
    """Rows that ask something and end with the answer, without tools; and whose prompt leaves room to answer."""
    fitting = [row for row in rows if row.messages[-1].role == "assistant" and len(row.messages) > 1 and not row.tools]
    chosen = [fitting[i] for i in spread(len(fitting), most)]
    asked = []
    for row in chosen:
        with suppress(DataError):  # a question the template cannot show by itself; the notes count it
            asked.append(_Asked(row, session.renderer.prompt_ids(row.as_dicts()[:-1])))
    return [one for one in asked if len(one.prompt) < limit]


def _compared(
    session: Session, asked: Sequence[_Asked], known: dict[str, _Loss], asides: Sequence[str], seconds: float, told: Told
) -> list[ComparedRow]:
    """Both answers of every row, as far as the time goes."""
    if not asked:
        return []
    expected = [one.row.messages[-1].content for one in asked]
    longest = max(len(session.renderer.tokenizer(text)["input_ids"]) for text in expected)
    sampling = Sampling(max_new_tokens=max(1, min(LONGEST, 2 * longest)))
    start, compared, at = time.monotonic(), list[ComparedRow](), 0
    while at < len(asked) and (not at or time.monotonic() - start < seconds):
        some = asked[at : at + (len(asked) if math.isinf(seconds) else TOGETHER if at else FIRST)]
        told("answers", 2 * at, 2 * len(asked))
        sides = []
        for base in (True, False):
            ids = _generate(session, [one.prompt for one in some], sampling, base)
            sides.append(_sides(session, ids, some, known, asides, "before" if base else "after"))
            told("answers", 2 * at + len(sides) * len(some), 2 * len(asked))
        for one, before, after in zip(some, *sides):
            question, answer = one.row.messages[-2].content, one.row.messages[-1].content
            compared.append(ComparedRow(one.row.where, question, answer, before, after))
        at += len(some)
    return compared


def _generate(session: Session, prompts: Sequence[list[int]], sampling: Sampling, base: bool) -> list[list[int]]:
    pad = session.renderer.tokenizer.pad_token_id
    return generate(session.model, prompts, session.stop_ids, pad, sampling, context=session.context, base=base)


def _text(session: Session, ids: Sequence[int]) -> str:
    return str(session.renderer.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def _sides(
    session: Session, answers: Sequence[list[int]], asked: Sequence[_Asked], known: dict[str, _Loss], asides: Sequence[str],
    side: str,
) -> list[Side]:  # fmt: skip
    texts = [_text(session, ids) for ids in answers]
    expected = [one.row.messages[-1].content for one in asked]
    right = exact_matches(texts, expected, asides)
    return [
        Side(
            text, len(ids), bool(ids) and ids[-1] in session.stop_ids, same, chrf(text, wanted, asides),
            known[one.row.where].mean(side),
        )
        for text, ids, wanted, same, one in zip(texts, answers, expected, right, asked)
    ]  # fmt: skip


def _measures(losses: Sequence[_Loss], rows: Sequence[ComparedRow]) -> list[Measure]:
    """The measures over rows; none that no row was there for."""
    made: list[Measure] = []
    if losses:
        sides = [[loss.mean(side) for loss in losses] for side in ("before", "after")]
        loss = measure("loss on answers", "nats", -1, sides[0], sides[1], [loss.tokens for loss in losses])
        made += [loss, _perplexity(loss)]
    if rows:
        both = [[row.before for row in rows], [row.after for row in rows]]

        def of(name: str, unit: Any, good: int, figure: Callable[[Side], float]) -> Measure:
            return measure(name, unit, good, [figure(side) for side in both[0]], [figure(side) for side in both[1]])

        made += [
            of("exact match", "share", 1, lambda side: side.right),
            of("chrF", "points", 1, lambda side: side.chrf),
            of("stops properly", "share", 1, lambda side: side.stopped),
            of("answer length", "tokens", 0, lambda side: side.tokens),
        ]
    return made


def _perplexity(loss: Measure) -> Measure:
    """The same as perplexity; its interval is that of the loss."""
    name = loss.name.replace("loss", "perplexity")
    before, after = (math.exp(min(value, 700)) for value in (loss.before, loss.after))
    return replace(loss, name=name, unit="ratio", before=before, after=after, change=None)


def _general_text(session: Session, losses: Losses, limit: int) -> Measure:
    """Mean loss on paragraphs of plain prose, every token but the first."""
    ids = [session.renderer.tokenizer(text)["input_ids"] for text in general_texts()]
    whole = [Example(row, [IGNORE, *row[1:]], f"general text {number}") for number, row in enumerate(ids, 1)]
    examples, _, _ = cut(whole, limit)
    before, after = losses(examples, True), losses(examples, False)
    means = [[_finite(total, tokens) / tokens for total, tokens in side] for side in (before, after)]
    return measure("loss on general text", "nats", -1, means[0], means[1], [tokens for _, tokens in before])


def _suites(session: Session, told: Told) -> list[Measure]:
    """The share of items right, by suite and last of all."""
    items = load_items()
    right: dict[bool, list[float]] = {True: [], False: []}
    made: list[Measure] = []
    done = 0
    for suite, tokens in SUITES.items():
        asked = [item for item in items if item.suite == suite]
        prompts = [session.renderer.prompt_ids([{"role": "user", "content": item.ask}]) for item in asked]
        for base in (True, False):
            told("suites", done, 2 * len(items))
            answers = _generate(session, prompts, Sampling(max_new_tokens=tokens), base)
            right[base] += [item.is_right(_text(session, ids)) for item, ids in zip(asked, answers)]
            done += len(asked)
        made.append(measure(suite, "share", 1, right[True][-len(asked) :], right[False][-len(asked) :]))
    told("suites", done, done)
    return [*made, measure("all suites", "share", 1, right[True], right[False])]


def _notes(
    rows: Sequence[Conversation], known: dict[str, _Loss], asked: Sequence[_Asked], compared: Sequence[ComparedRow]
) -> list[str]:
    """What was left out."""
    notes = []
    if len(known) < len(rows):
        notes.append(f"{len(rows) - len(known):,} of {len(rows):,} rows have no answer this model can be scored on")
    if len(compared) < len(known):
        notes.append(f"{len(compared):,} of {len(known):,} rows were answered; the loss is that of all {len(known):,}")
    return notes
