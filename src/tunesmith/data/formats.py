"""Rows to conversations, and whether each row is something that can be trained on."""

from collections.abc import Iterable, Iterator
from typing import Any

from tunesmith.data.bad_rows import OnBadRow, refuse
from tunesmith.data.columns import PAIRS, Columns, find_columns
from tunesmith.data.conversation import DOCUMENT, Conversation, Message
from tunesmith.data.messages import messages_of
from tunesmith.data.row import Row
from tunesmith.data.text import listed, text_of
from tunesmith.data.tool_calls import tools_of
from tunesmith.errors import RowError

__all__ = ["PAIRS", "Columns", "Conversation", "Message", "conversations", "find_columns", "to_conversations"]


def to_conversations(rows: Iterable[Row], columns: Columns, bad: OnBadRow = refuse) -> list[Conversation]:
    """One conversation a row; raises as `conversations`."""
    return list(conversations(rows, columns, bad))


def conversations(rows: Iterable[Row], columns: Columns, bad: OnBadRow = refuse) -> Iterator[Conversation]:
    """One conversation a row, one after another.

    Args:
        bad: told of a row that has no assistant text, an unknown role, or content that is not text; by default it raises
            RowError, with file, line and the number of the message.
    """
    for row in rows:
        try:
            made = _conversation(row, columns)
        except RowError as error:
            bad(error)
            continue
        yield made


def _conversation(row: Row, columns: Columns) -> Conversation:
    if columns.text:
        return _document(row, columns.text)
    if columns.messages:
        messages = messages_of(_cell(row, columns.messages), row.where, columns.messages)
    else:
        prompt, completion = _prompt(row, columns), _side(row, columns.completion, "assistant")
        if completion != prompt and completion[: len(prompt)] == prompt:
            raise RowError(
                f"{row.where}: {columns.completion!r} begins with the prompt, which would be asked twice.",
                f"Read it alone: --messages {columns.completion}.",
            )
        messages = [*prompt, *completion]
    if not any(m.role == "assistant" and (m.content.strip() or "tool_calls" in m.more) for m in messages):
        raise RowError(f"{row.where} has no assistant text to learn.", "Give it an answer or remove the row.")
    if not any(m.role == "assistant" and m.train for m in messages):
        raise RowError(f"{row.where}: every answer is marked not to be trained.", "Leave one to learn, or remove the row.")
    tools = tools_of(row.values.get(columns.tools), f"{row.where}, column {columns.tools!r}") if columns.tools else ()
    return Conversation((*_system(row, columns.system, messages), *messages), row.where, tools)


def _document(row: Row, column: str) -> Conversation:
    text = text_of(_cell(row, column), f"{row.where}, column {column!r}")
    if not text.strip():
        raise RowError(f"{row.where}, column {column!r} is blank: there is nothing to learn.", "Give it text or remove the row.")
    return Conversation((Message(DOCUMENT, text),), row.where)


def _system(row: Row, column: str | None, messages: list[Message]) -> list[Message]:
    """The system prompt, if the row has one and does not bring its own."""
    value = row.values.get(column) if column else None
    if value is None or value == "":
        return []
    if messages[0].role == "system":
        raise RowError(f"{row.where} has a system prompt in {column!r} and another in its messages.", "Keep one of the two.")
    return [Message("system", text_of(value, f"{row.where}, column {column!r}"))]


def _prompt(row: Row, columns: Columns) -> list[Message]:
    messages = _side(row, columns.prompt, "user")
    extra = row.values.get(columns.input) if columns.input else None
    if extra is None or extra == "":
        return messages
    carried_on = text_of(extra, f"{row.where}, column {columns.input!r}")
    return [*messages[:-1], Message("user", f"{messages[-1].content}\n\n{carried_on}")]


def _side(row: Row, column: str | None, role: str) -> list[Message]:
    """A prompt or completion: text, or (as trl has it) a list of messages."""
    value = _cell(row, column)
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return messages_of(value, row.where, str(column))
    return [Message(role, text_of(value, f"{row.where}, column {column!r}"))]


def _cell(row: Row, column: str | None) -> Any:
    """The value in a column that every row has to have. Raises RowError."""
    if column not in row.values:
        raise RowError(f"{row.where} has no {column!r}; it has {listed(row.values)}.", "Give it one or remove the row.")
    return row.values[column]
