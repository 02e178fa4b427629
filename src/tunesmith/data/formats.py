"""Rows to conversations, and whether each row is something that can be trained on."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from tunesmith.data.advice import WHICH
from tunesmith.data.bad_rows import OnBadRow, refuse
from tunesmith.data.columns import PAIRS, Columns, find_columns
from tunesmith.data.conversation import DOCUMENT, Conversation, Message
from tunesmith.data.messages import in_rows, messages_of, turns_of
from tunesmith.data.row import Row
from tunesmith.data.text import kind_of, listed, text_of
from tunesmith.data.tool_calls import json_of, tools_of
from tunesmith.data.values import begins_as_messages
from tunesmith.errors import RowError

__all__ = ["PAIRS", "Columns", "Conversation", "Message", "conversations", "find_columns", "to_conversations"]

Tell = Callable[[str], None]
"""Told what the user should know of the rows."""


def to_conversations(rows: Iterable[Row], columns: Columns, bad: OnBadRow = refuse) -> list[Conversation]:
    """One conversation a row; raises as `conversations`."""
    return list(conversations(rows, columns, bad))


def conversations(
    rows: Iterable[Row], columns: Columns, bad: OnBadRow = refuse, tell: Tell = lambda line: None
) -> Iterator[Conversation]:
    """One conversation a row, one after another.

    Args:
        bad: told of a row that has no assistant text, an unknown role, or content that is not text; by default it raises
            RowError, with file, line and the number of the message. tell: told of columns that only later rows have, and
            what else of the files is to be known.
    """
    known = {*columns.names, *columns.unread}
    for row in rows:
        if row.note:
            tell(row.note)
        if not known >= row.values.keys():  # the first rows had no system prompt, say, and later ones do
            late = {column: value for column, value in row.values.items() if column not in known}
            columns = columns.beside([Row(late, row.where)])
            known.update(late)
            for note in _of_late(late, columns, row.where):
                tell(note)
        try:
            made = _conversation(row, columns)
        except RowError as error:
            bad(error)
            continue
        yield made


def _of_late(late: Iterable[str], columns: Columns, where: str) -> Iterator[str]:
    """What became of columns that the first rows did not have, as far as their names say that they are to be read."""
    for column in late:
        if column in columns.names:
            yield f"{column!r} first stands in {where}, and is read from there on"
        elif kind := columns.meant_as(column):
            instead = getattr(columns, kind)
            why = f"{instead!r} is" if instead else "it is no text" if kind == "input" else "it is no list of pairs"
            yield f"{column!r} first stands in {where}, and is not read: {why}"


def _conversation(row: Row, columns: Columns) -> Conversation:
    if columns.text:
        return _document(row, columns.text)
    if columns.judged and str(row.values.get("label")).lower() == "false":
        raise RowError(
            f"{row.where} says in 'label' that its completion is bad (as for KTO), and it would be learnt like the good ones.",
            f"Remove the row; or, to learn all of them, add {columns.advised(dataset_format='prompt_completion')}.",
        )
    earlier: list[Message] = []
    if columns.messages:
        said = messages_of(_cell(row, columns.messages), row.where, columns.messages)
    else:
        prompt, said = _pair(row, columns)
        asked = next((number for number, m in enumerate(prompt) if m.role != "system"), len(prompt))
        earlier = [*prompt[:asked], *_history(row, columns), *prompt[asked:]]
    messages = [*earlier, *said]
    answers = [m for m in said if m.role == "assistant" and (m.content.strip() or "tool_calls" in m.more)]
    if not answers:
        raise RowError(f"{row.where} has no assistant text to learn.", "Give it an answer or remove the row.")
    if not any(m.train for m in answers):
        raise RowError(f"{row.where}: every answer is marked not to be trained.", "Leave one to learn, or remove the row.")
    tools = tools_of(row.values.get(columns.tools), f"{row.where}, column {columns.tools!r}") if columns.tools else ()
    return Conversation((*_system(row, columns.system, messages), *messages), row.where, tools)


def _pair(row: Row, columns: Columns) -> tuple[list[Message], list[Message]]:
    """Prompt and completion. What the assistant said within a prompt is asked about, not learnt. Raises RowError."""
    prompt, completion = _prompt(row, columns), _side(row, columns, columns.completion, "assistant")
    if completion != prompt and completion[: len(prompt)] == prompt:
        raise RowError(
            f"{row.where}: {columns.completion!r} begins with the prompt, which would be asked twice.",
            f"Read it alone: {columns.advised(messages=str(columns.completion))}.",
        )
    if prompt[-1].role == completion[0].role == "assistant":
        raise RowError(
            f"{row.where}: {columns.prompt!r} ends with the beginning of an answer, and {columns.completion!r} is another one.",
            "Put all of the answer into the completion.",
        )
    return [replace(m, train=False) if m.role == "assistant" else m for m in prompt], completion


def _history(row: Row, columns: Columns) -> list[Message]:
    """The turns before the prompt, if there are any; their answers are learnt, as earlier ones of any conversation are."""
    return turns_of(row.values.get(columns.history), row.where, columns.history) if columns.history else []


def _document(row: Row, column: str) -> Conversation:
    text = text_of(_cell(row, column), f"{row.where}, column {column!r}")
    if not text.strip():
        raise RowError(f"{row.where}, column {column!r} is blank: there is nothing to learn.", "Give it text or remove the row.")
    return Conversation((Message(DOCUMENT, text),), row.where)


def _system(row: Row, column: str | None, messages: list[Message]) -> list[Message]:
    """The system prompt, if the row has one and does not bring its own."""
    value = row.values.get(column) if column else None
    if _is_blank(value):
        return []
    if messages[0].role == "system":
        raise RowError(f"{row.where} has a system prompt in {column!r} and another in its messages.", "Keep one of the two.")
    return [Message("system", text_of(value, f"{row.where}, column {column!r}"))]


def _prompt(row: Row, columns: Columns) -> list[Message]:
    messages = _side(row, columns, columns.prompt, "user")
    extra = row.values.get(columns.input) if columns.input else None
    if _is_blank(extra):
        return messages
    where = f"{row.where}, column {columns.input!r}"
    if not isinstance(extra, str):
        raise RowError(
            f"{where} is {kind_of(extra)}, not text.",
            f"Give it text; or, to leave the column out, add "
            f"{columns.advised(prompt=str(columns.prompt), completion=str(columns.completion))}.",
        )
    asked = messages[-1].content
    return [*messages[:-1], Message("user", f"{asked}\n\n{text_of(extra, where)}" if asked.strip() else text_of(extra, where))]


def _is_blank(value: Any) -> bool:
    """Whether a cell that may be empty is."""
    return value is None or (isinstance(value, str) and not value.strip())


def _side(row: Row, columns: Columns, column: str | None, role: str) -> list[Message]:
    """A prompt or completion: text, or (as trl has it) a list of messages, or such a list written out in a column of these."""
    value, where = _cell(row, column), f"{row.where}, column {column!r}"
    if isinstance(value, str) and column in columns.written and begins_as_messages(value):
        value = json_of(value, f"{row.where}: {column!r}")
    value = in_rows(value)
    if not isinstance(value, list) or not any(isinstance(item, dict) for item in value):
        return [Message(role, text_of(value, where))]
    messages = messages_of(value, row.where, str(column))
    marked = [number for number, item in enumerate(value, 1) if item.get("train") or item.get("weight")]
    if marked and column == columns.prompt:
        raise RowError(
            f"{where}, message {marked[0]} is marked to be trained, and what the assistant said within a prompt is not.",
            f"Write all messages into one column and read it with {columns.advised(messages=WHICH)}, or remove the mark.",
        )
    return messages


def _cell(row: Row, column: str | None) -> Any:
    """The value in a column that every row has to have. Raises RowError."""
    if column not in row.values:
        raise RowError(
            f"{row.where} has no {column!r}; it has {listed(row.values)}.",
            "Give it one or remove the row; files of different columns are read if they are named one by one, with commas.",
        )
    return row.values[column]
