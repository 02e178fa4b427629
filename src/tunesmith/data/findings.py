"""What a reader of all rows would have noticed: duplicates, leaks, refusals, strange languages. Each with a few of its rows."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

from tunesmith.data.answers import is_missing, is_refusal, repeated, unfinished
from tunesmith.data.conversation import DOCUMENT, Conversation, Message
from tunesmith.data.duplicates import groups_of, near_groups, normalised
from tunesmith.data.language import odd_ones
from tunesmith.data.leaks import find_leaks

SHOWN = 5
"""Rows that are named for a finding."""
HARMLESS = frozenset("\n\t\r\u200c\u200d\ufeff")
"""Control and format characters that ordinary text has."""
_UNUSUAL = re.compile(r"[^\0\1\t\n\r -~]")
"""What has to be looked at; 0 and 1 are what a `Said` is put together with."""

Watch = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Sight:
    """A row that shows a finding. where: the row. text: what is to be seen there."""

    where: str
    text: str


@dataclass(frozen=True)
class Finding:
    """Something looked for in the rows.

    name: what, for machines. title: what, for people. count: rows it was found in. looked_at: rows it was looked for in.
    worth_a_look: whether that is more than a data set may well have. why: what it does to the training. fix: what to do
    about it. rows: some of them.
    """

    name: str
    title: str
    count: int
    looked_at: int
    worth_a_look: bool
    why: str
    fix: str
    rows: tuple[Sight, ...]


@dataclass(frozen=True)
class Said:
    """A conversation as it is compared. question: all before the last answer but system prompts, normalised. answer: the last
    one, normalised. whole: all of it, normalised, with roles. asked: the end of the question, as written. answers: all that
    are trained, as written. system: the system prompt. after: what follows the last answer."""

    where: str
    question: str
    answer: str
    whole: str
    asked: str
    answers: tuple[str, ...]
    system: str
    after: str = ""


def said(conversation: Conversation) -> Said:
    """What a conversation says. A plain text is an answer to nothing."""
    messages = conversation.messages
    texts = list(map(_text, messages))
    plain = list(map(normalised, texts))
    answers = [i for i, message in enumerate(messages) if message.role in ("assistant", DOCUMENT)]
    before = [i for i in range(answers[-1]) if messages[i].role != "system"]
    asked = [plain[i] if messages[i].content == texts[i] else normalised(messages[i].content) for i in before]
    return Said(
        conversation.where,
        " ".join(filter(None, asked)),
        plain[answers[-1]],
        "\0".join([f"{message.role}\1{text}" for message, text in zip(messages, plain)]),
        messages[before[-1]].content if before else "",
        tuple([texts[i] for i in answers if messages[i].train]),
        "\n".join([message.content for message in messages if message.role == "system"]),
        "\n".join(texts[answers[-1] + 1 :]),
    )


def _text(message: Message) -> str:
    """What a message says, calls of tools included."""
    calls = message.more.get("tool_calls")
    return f"{message.content}{json.dumps(calls, sort_keys=True, default=str, ensure_ascii=False)}" if calls else message.content


def find(rows: Sequence[Said], held_out: Sequence[Said], watch: Watch = lambda what, done, total: None) -> tuple[Finding, ...]:
    """Everything that is looked for, found or not, the gravest first."""
    return (
        *_leaks(rows, held_out, watch), _empty(rows), _missing(rows), _refusals(rows), _unfinished(rows), _unanswered(rows),
        *_duplicates(rows, watch), _repeated(rows), _conflicts(rows), _languages(rows, watch), _controls(rows),
    )  # fmt: skip


def _finding(
    name: str, title: str, rows: Sequence[Said], found: Sequence[tuple[int, str]], tolerated: float, why: str, fix: str,
    looked_at: int | None = None,
) -> Finding:  # fmt: skip
    """``found``: (index into rows, what to show). ``tolerated``: share of rows that is nothing to stop at."""
    total = len(rows) if looked_at is None else looked_at
    sights = tuple(Sight(rows[i].where, _short(text)) for i, text in found[:SHOWN])
    return Finding(name, title, len(found), total, len(found) > tolerated * total, why, fix, sights)


def _short(text: str, most: int = 100) -> str:
    """The text on one line, cut after so many characters."""
    line = " ".join(text[: 4 * most].split(" "))
    return line if len(line) <= most else line[: most - 1] + "…"


def _leaks(rows: Sequence[Said], held_out: Sequence[Said], watch: Watch) -> list[Finding]:
    pairs = [[(row.question, row.answer) for row in side] for side in (rows, held_out)]
    leaks = find_leaks(pairs[0], pairs[1], lambda done, total: watch("leaks", done, total))
    same = [(h, f"also {rows[t].where}: {rows[t].asked}") for h, t in leaks.same]
    asked = [(h, f"asked in {rows[t].where} too: {rows[t].asked}") for h, t in leaks.asked]
    near = [(h, f"nearly {rows[t].where}: {held_out[h].asked}") for h, t in leaks.near]
    why = "the held-out loss will look better than the model is"
    return [
        _finding("leaks", "held-out rows also trained on", held_out, same + asked, 0, why, "Take them out of one of the two."),
        _finding("near_leaks", "held-out rows nearly trained on", held_out, near, 0.02, why, "Take them out of one of the two."),
    ]


def _empty(rows: Sequence[Said]) -> Finding:
    found = [(i, f"answer {n} of {len(row.answers)}: {answer!r}") for i, row in enumerate(rows)
             for n, answer in enumerate(row.answers, 1) if not answer.strip()]  # fmt: skip
    found = list({i: (i, text) for i, text in reversed(found)}.values())[::-1]
    why = "teaches the model to say nothing"
    return _finding("empty_answers", "empty or blank answers", rows, found, 0, why, "Give them an answer or remove them.")


def _missing(rows: Sequence[Said]) -> Finding:
    found = [(i, repr(next(filter(is_missing, row.answers)))) for i, row in enumerate(rows) if any(map(is_missing, row.answers))]
    why = "a program wrote it where there was nothing, and it is learnt like any other answer"
    fix = "Give them an answer or remove them."
    return _finding("missing_answers", "answers such as NaN or null", rows, found, 0.001, why, fix)


def _unanswered(rows: Sequence[Said]) -> Finding:
    found = [(i, row.after) for i, row in enumerate(rows) if row.after]
    why = "what follows the last answer is not used"
    return _finding("unanswered", "rows that end without an answer", rows, found, 0.001, why, "Complete them, or let it be.")


def _refusals(rows: Sequence[Said]) -> Finding:
    found = [(i, next(filter(is_refusal, row.answers))) for i, row in enumerate(rows) if any(map(is_refusal, row.answers))]
    why = "teaches the model to refuse"
    return _finding(
        "refusals", "answers that refuse", rows, found, 0.001, why, "Remove them, unless refusing is what it shall learn."
    )


def _unfinished(rows: Sequence[Said]) -> Finding:
    answers = [row.answers[-1] for row in rows]
    found = [(i, f"… {answers[i].rstrip()[-90:]}") for i in unfinished(answers)]
    why = "teaches the model to stop in mid-sentence; nearly all others end with a mark"
    return _finding("unfinished_answers", "answers that seem cut off", rows, found, 0.001, why, "Complete or remove them.")


def _duplicates(rows: Sequence[Said], watch: Watch) -> list[Finding]:
    exact = groups_of(row.whole for row in rows)
    again = [(i, f"as {rows[group[0]].where}: {rows[i].asked or rows[i].answers[-1]}") for group in exact for i in group[1:]]
    texts = [f"{row.question}\n{row.answer}" for row in rows]
    near = near_groups(texts, lambda done, total: watch("duplicates", done, total))
    alike = [(i, f"nearly {rows[group[0]].where}: {rows[i].asked or rows[i].answers[-1]}") for group in near for i in group[1:]]
    fix = "Keep one of each, unless they are meant to weigh more."
    return [
        _finding("exact_duplicates", "rows that are there already", rows, again, 0.01, "they weigh more than others", fix),
        _finding("near_duplicates", "rows nearly there already", rows, alike, 0.05, "they weigh more than others", fix),
    ]


def _repeated(rows: Sequence[Said]) -> Finding:
    groups = repeated([row.question for row in rows], [row.answer for row in rows])
    found = [(group[0], f"to {len(group)} questions: {rows[group[0]].answers[-1]}") for group in groups]
    found += [(i, rows[i].answers[-1]) for group in groups for i in group[1:]]
    why = "one answer to many questions teaches the model not to listen"
    return _finding("repeated_answers", "long answers given three times or more", rows, found, 0.01, why, "See whether they fit.")


def _conflicts(rows: Sequence[Said]) -> Finding:
    found = []
    for group in groups_of(row.question for row in rows):
        if rows[group[0]].question and len({rows[i].answer for i in group}) > 1:
            found += [(i, f"{rows[i].asked} → {rows[i].answers[-1]}") for i in group]
    why = "the loss cannot fall below their disagreement"
    fix = "Keep the better answer, unless variety is wanted."
    return _finding("conflicting_answers", "questions answered differently", rows, found, 0.05, why, fix)


def _languages(rows: Sequence[Said], watch: Watch) -> Finding:
    odd: dict[int, str] = {}
    mixtures: list[str] = []
    for number, side in enumerate(([row.question for row in rows], [row.answer for row in rows])):
        watch("languages", number, 2)
        counts, foreign = odd_ones(side)
        for index, name in foreign.items():
            odd.setdefault(
                index, f"{name}, most are in {next(iter(counts))}: {(rows[index].asked, rows[index].answers[-1])[number]}"
            )
        if not foreign and len(counts) > 1:
            mixtures.append(f"{('questions', 'answers')[number]} in " + ", ".join(f"{n} ({c:,})" for n, c in [*counts.items()][:4]))
    watch("languages", 2, 2)
    why = "; ".join(mixtures) or "teaches the model to change its language"
    fix = "Remove or translate them, unless a mixture is wanted."
    return _finding("other_languages", "rows in another language than most", rows, sorted(odd.items()), 0.001, why, fix)


def _controls(rows: Sequence[Said]) -> Finding:
    found = []
    for i, row in enumerate(rows):
        if not any(map(_UNUSUAL.search, (row.whole[:4000], *row.answers))):
            continue
        characters = set(chain(row.whole[:4000], *row.answers)) - {"\0", "\1"}
        strange = sorted(c for c in characters if c not in HARMLESS and _is_control(c))
        if strange:
            found.append((i, ", ".join(f"U+{ord(c):04X} {unicodedata.name(c, 'control character')}" for c in strange[:4])))
    why = "it is learnt like any other character"
    return _finding("control_characters", "rows with invisible characters", rows, found, 0.001, why, "Remove them from the text.")


def _is_control(character: str) -> bool:
    """Control and format characters; not the many kinds of space."""
    return unicodedata.category(character) in ("Cc", "Cf", "Co") or character == "\ufffd"


def system_prompts(rows: Sequence[Said]) -> tuple[tuple[str, int], ...]:
    """System prompts as written, "" for none, and how many rows have each, most first."""
    return tuple(Counter(row.system for row in rows).most_common())
