"""Which columns of a data set hold what: named by the user, or found by their names and by what stands in them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from tunesmith.data.advice import WHICH, ColumnsError, as_flags, headless, in_entry_of
from tunesmith.data.messages import SPEAKERS
from tunesmith.data.sources import BUNDLED_COLUMNS, Row, is_bundled
from tunesmith.data.text import listed
from tunesmith.data.text_files import MESSAGES
from tunesmith.data.values import (
    are_speakers,
    are_text,
    are_turns,
    are_written_messages,
    check_texts,
    first_message,
    speaks,
    unread_keys,
)
from tunesmith.errors import DataError, did_you_mean, near

CONVERSATIONS = ("messages", "conversations", "conversation", "chat", "dialogue", "dialog")
"""Columns that hold a list of messages, first the most usual."""
PAIRS = (
    ("prompt", "completion"),
    ("question", "answer"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("instruction", "completion"),
    ("instruction", "answer"),
    ("question", "response"),
    ("question", "output"),
    ("question", "solution"),
    ("problem", "solution"),
    ("query", "response"),
    ("query", "answer"),
    ("prompt", "response"),
    ("prompt", "answer"),
    ("prompt", "output"),
    ("input", "output"),
    ("user", "assistant"),
    ("sentence", "translation_extra"),
)
"""Column pairs that are understood without being named."""
CARRIED_ON = {"instruction": ("input", "context"), "question": ("context",), "query": ("context",)}
"""Columns that carry on a prompt, by the name of its column: as in Alpaca and Dolly, or a passage that is asked about."""
HISTORIES = ("history",)
"""Columns that hold the turns before the prompt, as LLaMA-Factory's Alpaca and ChatGLM have them: pairs of question and answer."""
SYSTEMS = ("system", "system_prompt")
TOOLS = ("tools", "functions")
FIT = {"input": are_text, "history": are_turns}
"""What columns have to hold to be read as what their names say."""
ASKED = tuple(dict.fromkeys(prompt for prompt, _ in PAIRS))
FORMATS = ("auto", "messages", "sharegpt", "prompt_completion", "alpaca", "text")
PREFERENCES = {"chosen", "rejected"}
"""Columns of answers that are compared, not learnt."""
LOOKED_AT = 100
"""Rows looked at to find the columns."""


@dataclass(frozen=True)
class Columns:
    """How a row becomes a conversation: from ``messages`` alone, from ``prompt`` and ``completion``, or from ``text``.

    input: stands below the prompt, unless blank. history: turns before it. system: the system prompt, unless blank. tools: what
    may be called. sharegpt: whether messages say from and value. written: of prompt and completion those that are lists of
    messages written out as text. named: whether the user named them. judged: whether a column ``label`` says if a completion is
    good. in_entry: whether a mixture's entry says how they are read. unread: columns that mean nothing here.
    """

    messages: str | None = None
    prompt: str | None = None
    completion: str | None = None
    input: str | None = None
    history: str | None = None
    system: str | None = None
    text: str | None = None
    tools: str | None = None
    sharegpt: bool = field(default=False, compare=False)
    written: tuple[str, ...] = field(default=(), compare=False)
    named: bool = field(default=False, compare=False)
    judged: bool = field(default=False, compare=False)
    in_entry: bool = field(default=False, compare=False)
    unread: tuple[str, ...] = field(default=(), compare=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that are read."""
        fields = (self.system, self.messages, self.history, self.prompt, self.input, self.completion, self.text, self.tools)
        return tuple(name for name in fields if name)

    def beside(self, rows: Iterable[Row]) -> "Columns":
        """With those columns of these rows that say more: what carries on the prompt, turns before it, the system prompt, tools."""
        found, seen = self, list(rows)
        there = dict.fromkeys(column for row in seen for column in row.values)
        for kind, names in self._saying_more().items():
            fit = [column for column in there if column.lower() in names and (kind not in FIT or FIT[kind](seen, column))]
            more: dict[str, Any] = {kind: getattr(found, kind) or _first(names, fit, found)}
            found = replace(found, **more)
        return found

    def meant_as(self, column: str) -> str | None:
        """What a column says more by its name: input, history, system or tools; None if its name means nothing here."""
        return next((kind for kind, names in self._saying_more().items() if column.lower() in names), None)

    def as_in(self, rows: Sequence[Row]) -> "Columns":
        """The same columns with what these rows hold in them."""
        sides = (side for side in (self.prompt, self.completion) if side)
        return replace(
            self, sharegpt=self.messages is not None and speaks(rows, self.messages) == "from",
            written=tuple(side for side in sides if are_written_messages(rows, side)),
        )  # fmt: skip

    def _saying_more(self) -> dict[str, tuple[str, ...]]:
        """Names of columns that say more, by what they are read as."""
        if self.text:
            return {}
        found = self.prompt.lower() if self.prompt and not self.named else ""
        return {"input": CARRIED_ON.get(found, ()), "history": HISTORIES if found else (), "system": SYSTEMS, "tools": TOOLS}

    def advised(self, **settings: str) -> str:
        """Settings that would read these rows otherwise, as the user is to write them."""
        return (in_entry_of if self.in_entry else as_flags)(settings)

    def describe(self) -> str:
        """One line for the user."""
        if self.messages:
            line = f"messages from {self.messages!r}" + (" (from and value)" if self.sharegpt else "")
        elif self.text:
            line = f"plain text from {self.text!r}, every token trained"
        else:
            told = {name: repr(name) + " (lists of messages as JSON)" * (name in self.written) for name in self.names}
            line = " + ".join(told[name] for name in (self.prompt, self.input) if name) + f" → {told[str(self.completion)]}"
        more = {"earlier turns (trained too)": self.history, "system prompt": self.system, "tools": self.tools}
        extra = [f", {what} from {name!r}" for what, name in more.items() if name]
        unread = f"; not read: {listed(self.unread)}" if self.unread else ""
        return line + "".join(extra) + unread


def find_columns(
    rows: Iterable[Row],
    name: str,
    messages: str | None = None,
    prompt: str | None = None,
    completion: str | None = None,
    *,
    system: str | None = None,
    text: str | None = None,
    tools: str | None = None,
    format: str = "auto",
) -> Columns:
    """The columns the user named, or those found by their names and contents in the first `LOOKED_AT` rows.

    Args:
        name: the data set's, for messages. format: one of `FORMATS`; auto takes the first that fits.

    Raises:
        ColumnsError: a named column is not there, or none was named and none is recognised.
    """
    seen = list(islice(rows, LOOKED_AT))
    there = list(dict.fromkeys(column for row in seen for column in row.values))
    kinds = {
        "messages": messages, "prompt": prompt, "completion": completion, "system": system, "text": text, "tools": tools,
    }  # fmt: skip
    named = {kind: column for kind, column in kinds.items() if column is not None}
    if not set(named.values()) <= set(there):
        raise _not_there(named, there, name, seen)
    if prompt is not None and prompt == completion:
        what = f"{prompt!r} is named as the prompt and as the completion: nothing but an echo is learnt."
        raise ColumnsError(what, {"completion": WHICH}, "Name another")
    if messages or prompt or text:
        found = Columns(messages, prompt, completion, text=text, named=True)
    else:
        found = _found(seen, there, name, format)
    found = replace(found, system=system, tools=tools).beside(seen).as_in(seen)
    unread = [column for column in there if column not in found.names]
    return replace(found, unread=(*unread, *unread_keys(seen, found.messages)))


def _not_there(named: Mapping[str, str], there: list[str], name: str, seen: Sequence[Row]) -> ColumnsError:
    """Of named columns that are not there, with those that were probably meant: near names, or what is there by a usual one."""
    usual: Mapping[str, Any]
    try:
        usual = vars(_found(seen, there, name, "auto"))
    except DataError:
        usual = _suggested(seen, there)
    free = [column for column in there if column not in named.values()]
    meant: dict[str, str] = {}
    said = []
    for kind, column in named.items():
        if column not in there:
            like = near(column, free)
            said.append(f"no column {column!r}{did_you_mean(like)}")
            meant[kind] = like or (usual[kind] if usual.get(kind) in free else WHICH)
            free = [other for other in free if other != meant[kind]]
    return ColumnsError(f"{name} has {' and '.join(said)}; it has {listed(there)}.", meant)


def _found(rows: Sequence[Row], there: list[str], name: str, format: str) -> Columns:
    if is_bundled(name) and format == "auto":
        return Columns(None, *BUNDLED_COLUMNS[name])
    finders = {
        "messages": [_conversations],
        "sharegpt": [_conversations],
        "prompt_completion": [_pair],
        "alpaca": [_pair],
        "text": [_text],
    }.get(format, [_named_conversations, _pair, _conversations, _text])
    for find in finders:
        if found := find(rows, there):
            return replace(found, judged=format == "auto" and _are_judged(rows, name, found))
    if format != "auto":
        what = f"{name} ({listed(there)}) has no columns for the format {format}."
        raise ColumnsError(what, {"dataset_format": "auto"}, "Name them, or have them found")
    if set(there) >= PREFERENCES:
        raise ColumnsError(
            f"{name} ({listed(there)}) holds preferences, and tunesmith learns answers, not that one is better than another.",
            _chosen(rows, there), "To learn the chosen ones, add",
        )  # fmt: skip
    if any(keys <= set(there) and are_speakers(rows, min(keys & {"role", "from"})) for keys in MESSAGES):
        raise DataError(
            f"{name} ({listed(there)}) holds one message a row, and a row is a whole conversation.",
            'Write {"messages": [{"role": …, "content": …}, …]} for each conversation.',
        )
    check_texts(rows, there, name)
    raise ColumnsError(
        f"The columns of {name} ({listed(there)}) do not say which is the prompt and which the answer.", _suggested(rows, there),
        mend=headless(there),
    )  # fmt: skip


def _are_judged(rows: Sequence[Row], name: str, found: Columns) -> bool:
    """Whether completions are labelled, all of these good. Raises ColumnsError if some are bad: they would be learnt alike."""
    labels = {str(row.values.get("label")).lower() for row in rows} - {"none"}
    judged = found.completion is not None and bool(labels) and labels <= {"true", "false"}
    if judged and "false" in labels:
        raise ColumnsError(
            f"{name} says in 'label' which completions are good and which are bad (as for KTO), and all would be learnt alike.",
            {"dataset_format": "prompt_completion"}, "Or, to learn all of them, add", "Keep the rows whose label is true.",
        )  # fmt: skip
    return judged


def _chosen(rows: Sequence[Row], there: list[str]) -> dict[str, str]:
    """Settings that read the chosen answers; where conversations are chosen, what was asked stands in them again."""
    asked, first = _first(ASKED, there, Columns()), first_message(rows, "chosen")
    speaker = first.get("role", first.get("from"))
    if first and (not asked or SPEAKERS.get(str(speaker)) != "assistant"):
        return {"messages": "chosen"}
    return {"prompt": asked, "completion": "chosen"} if asked else {"text": "chosen"}


def _suggested(rows: Sequence[Row], there: Sequence[str]) -> dict[str, str]:
    """Settings that name columns; where there are many, or not all of them hold text, nobody knows which."""
    sure = all(are_text(rows, column) for column in there)
    if len(there) == 1:
        return {"text": there[0] if sure else WHICH}
    first, last = there if len(there) == 2 and sure else (WHICH, WHICH)
    return {"prompt": first, "completion": last}


def _named_conversations(rows: Sequence[Row], there: list[str]) -> Columns | None:
    column = _first(CONVERSATIONS, there, Columns())
    return Columns(column) if column and (column == "messages" or speaks(rows, column)) else None


def _conversations(rows: Sequence[Row], there: list[str]) -> Columns | None:
    """A column of a usual name, or the only one whose values are lists of messages."""
    speaking = [column for column in there if speaks(rows, column)] if not set(there) >= PREFERENCES else []
    return _named_conversations(rows, there) or (Columns(speaking[0]) if len(speaking) == 1 else None)


def _pair(rows: Sequence[Row], there: list[str]) -> Columns | None:
    spelled = {column.lower(): column for column in reversed(there)}
    for prompt, completion in PAIRS:
        if prompt in spelled and completion in spelled:
            return Columns(None, spelled[prompt], spelled[completion])
    return None


def _text(rows: Sequence[Row], there: list[str]) -> Columns | None:
    column = _first(("text",), there, Columns())
    return Columns(text=column) if column else None


def _first(names: Sequence[str], there: Sequence[str], taken: Columns) -> str | None:
    """The first of these names that there is, however it is capitalised, and that nothing else is read from."""
    spelled = {column.lower(): column for column in reversed(there) if column not in taken.names}
    return next((spelled[name] for name in names if name in spelled), None)
