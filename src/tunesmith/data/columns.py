"""Which columns of a data set hold what: named by the user, or found by their names and by what stands in them."""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from tunesmith.data.messages import READ, SPEAKERS
from tunesmith.data.sources import BUNDLED_COLUMNS, Row, is_bundled
from tunesmith.data.text import listed
from tunesmith.data.tool_calls import json_of
from tunesmith.errors import DataError, RowError, nearest

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
INPUTS = ("input", "context")
"""Columns that carry on an instruction, as in Alpaca and Dolly."""
SYSTEMS = ("system", "system_prompt")
ASKED = tuple(dict.fromkeys(prompt for prompt, _ in PAIRS))
FORMATS = ("auto", "messages", "sharegpt", "prompt_completion", "alpaca", "text")
PREFERENCES = {"chosen", "rejected"}
"""Columns of answers that are compared, not learnt."""
LOOKED_AT = 100
"""Rows looked at to find the columns."""


@dataclass(frozen=True)
class Columns:
    """How a row becomes a conversation: from ``messages`` alone, from ``prompt`` and ``completion``, or from ``text``.

    input: stands below the prompt, unless empty. system: the system prompt, unless empty. tools: what may be called.
    sharegpt: whether messages say from and value. unread: columns that mean nothing here.
    """

    messages: str | None = None
    prompt: str | None = None
    completion: str | None = None
    input: str | None = None
    system: str | None = None
    text: str | None = None
    tools: str | None = None
    sharegpt: bool = field(default=False, compare=False)
    unread: tuple[str, ...] = field(default=(), compare=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that are read."""
        fields = (self.system, self.messages, self.prompt, self.input, self.completion, self.text, self.tools)
        return tuple(name for name in fields if name)

    def describe(self) -> str:
        """One line for the user."""
        if self.messages:
            line = f"messages from {self.messages!r}" + (" (from and value)" if self.sharegpt else "")
        elif self.text:
            line = f"plain text from {self.text!r}, every token trained"
        else:
            line = " + ".join(repr(name) for name in (self.prompt, self.input) if name) + f" → {self.completion!r}"
        extra = [f", {what} from {name!r}" for what, name in (("system prompt", self.system), ("tools", self.tools)) if name]
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
        DataError: a named column is not there, or none was named and none is recognised.
    """
    seen = list(islice(rows, LOOKED_AT))
    there = list(dict.fromkeys(column for row in seen for column in row.values))
    for column in (messages, prompt, completion, system, text, tools):
        if column is not None and column not in there:
            raise DataError(
                f"{name} has no column {column!r}{nearest(column, there)}; it has {listed(there)}.",
                "Name the columns with --prompt and --completion, --messages, or --text.",
            )
    if prompt is not None and prompt == completion:
        raise DataError(f"{prompt!r} is named as the prompt and as the completion: nothing but an echo is learnt.", "Name two.")
    found = Columns(messages, prompt, completion, text=text) if messages or prompt or text else _found(seen, there, name, format)
    found = replace(
        found,
        system=system or found.system or (None if found.text else _first(SYSTEMS, there, found)),
        tools=tools or (None if found.text else _first(("tools", "functions"), there, found)),
        sharegpt=found.messages is not None and _speaks(seen, found.messages) == "from",
    )
    unread = [column for column in there if column not in found.names]
    return replace(found, unread=(*unread, *unread_keys(seen, found.messages)))


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
            return found
    if format != "auto":
        raise DataError(f"{name} ({listed(there)}) has no columns for the format {format}.", "Name them, or leave format out.")
    if set(there) >= PREFERENCES:
        raise DataError(
            f"{name} ({listed(there)}) holds preferences, and tunesmith learns answers, not that one is better than another.",
            f"To learn the chosen ones, add {_chosen(rows, there)}.",
        )
    raise DataError(
        f"The columns of {name} ({listed(there)}) do not say which is the prompt and which the answer.",
        f"Name the columns you mean: {_suggested(there)}.",
    )


def _chosen(rows: Sequence[Row], there: list[str]) -> str:
    """Flags that read the chosen answers; where conversations are chosen, what was asked stands in them again."""
    asked, first = _first(ASKED, there, Columns()), _first_message(rows, "chosen")
    speaker = first.get("role", first.get("from"))
    if first and (not asked or SPEAKERS.get(str(speaker)) != "assistant"):
        return "--messages chosen"
    return f"--prompt {asked} --completion chosen" if asked else "--text chosen"


def _suggested(there: Sequence[str]) -> str:
    """Flags that name columns; where there are many nobody knows which."""
    if len(there) == 1:
        return f"--text {shlex.quote(there[0])}"
    first, last = map(shlex.quote, there) if len(there) == 2 else ("COLUMN", "COLUMN")
    return f"--prompt {first} --completion {last}"


def unread_keys(rows: Sequence[Row], column: str | None) -> list[str]:
    """Keys of messages that nothing is done with, as ``column: key``."""
    lists = [value for row in rows if column and isinstance(value := row.values.get(column), list)]
    found = dict.fromkeys(key for value in lists for message in value if isinstance(message, dict) for key in message)
    return [f"{column}: {key}" for key in found if key not in READ]


def _named_conversations(rows: Sequence[Row], there: list[str]) -> Columns | None:
    column = _first(CONVERSATIONS, there, Columns())
    return Columns(column) if column and (column == "messages" or _speaks(rows, column)) else None


def _conversations(rows: Sequence[Row], there: list[str]) -> Columns | None:
    """A column of a usual name, or the only one whose values are lists of messages."""
    speaking = [column for column in there if _speaks(rows, column)] if not set(there) >= PREFERENCES else []
    return _named_conversations(rows, there) or (Columns(speaking[0]) if len(speaking) == 1 else None)


def _pair(rows: Sequence[Row], there: list[str]) -> Columns | None:
    spelled = {column.lower(): column for column in reversed(there)}
    for prompt, completion in PAIRS:
        if prompt in spelled and completion in spelled:
            found = Columns(None, spelled[prompt], spelled[completion])
            return replace(found, input=_first(INPUTS, there, found)) if prompt == "instruction" else found
    return None


def _text(rows: Sequence[Row], there: list[str]) -> Columns | None:
    column = _first(("text",), there, Columns())
    return Columns(text=column) if column else None


def _first(names: Sequence[str], there: list[str], taken: Columns) -> str | None:
    """The first of these names that there is, however it is capitalised, and that nothing else is read from."""
    spelled = {column.lower(): column for column in reversed(there) if column not in taken.names}
    return next((spelled[name] for name in names if name in spelled), None)


def _speaks(rows: Sequence[Row], column: str) -> str | None:
    """``role`` or ``from``, if this column holds lists of messages."""
    first = _first_message(rows, column)
    return next((key for key in ("role", "from") if key in first), None)


def _first_message(rows: Sequence[Row], column: str) -> dict[str, Any]:
    """What the first value there is in this column begins with, if that is a list of objects or one as JSON; else nothing. Text
    that begins as a list does and is none, which may be one bad row or a matter of style, leaves it to the next row."""
    for row in rows:
        value: Any = row.values.get(column)
        if isinstance(value, str) and value.lstrip().startswith("["):
            try:
                value = json_of(value, row.where)
            except RowError:
                continue
        if value:
            return value[0] if isinstance(value, list) and isinstance(value[0], dict) else {}
    return {}
