"""What was said: a system prompt and turns, and how they become a row to train on."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.data.columns import Columns
from tunesmith.data.formats import to_conversations
from tunesmith.data.render import Renderer
from tunesmith.data.row import Row
from tunesmith.errors import DataError, RunError

READ_AT_MOST = 2**22
"""Bytes of a file's first row that are looked at before another row is put below it."""


@dataclass(frozen=True)
class Turn:
    """A message and its answer. whole: whether the answer came to its end, or was cut or stopped."""

    question: str
    answer: str
    whole: bool = True


def messages_of(system: str | None, turns: Sequence[Turn], question: str | None = None) -> list[dict[str, str]]:
    """The messages as chat templates take them, with one more that waits for its answer."""
    messages = [{"role": "system", "content": system}] if system else []
    for turn in turns:
        messages += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answer}]
    return messages if question is None else [*messages, {"role": "user", "content": question}]


def row_of(system: str | None, turns: Sequence[Turn], renderer: Renderer) -> dict[str, Any]:
    """The talk as a row of a data set. Answers that did not come to their end are marked not to be trained: they would teach
    to stop in the middle.

    Raises:
        DataError: no answer is whole, or this model could not be trained on the talk.
    """
    messages: list[dict[str, Any]] = list(messages_of(system, turns))
    answers = [message for message in messages if message["role"] == "assistant"]
    for message, turn in zip(answers, turns):
        if not turn.whole or not turn.answer.strip():
            message["train"] = False
    if all("train" in message for message in answers):
        raise DataError(
            "There is nothing to save: no answer of this talk has come to its end.",
            "Ask something, or let an answer end: /set max_new_tokens=1024 and /retry.",
        )
    row = {"messages": messages}
    renderer.examples(to_conversations([Row(row, "The talk")], Columns(messages="messages")))
    return row


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Put a row at the end of a .jsonl file of such rows, which is made if it is not there.

    Raises:
        RunError: it is no such file, or cannot be written.
    """
    if path.suffix != ".jsonl":
        raise RunError(f"{path} is not named as a .jsonl file.", "Name one, such as talks.jsonl: /save talks.jsonl")
    line = json.dumps(row, ensure_ascii=False) + "\n"
    try:
        _check_rows(path)
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        with open(handle, "ab") as file:
            size = os.fstat(handle).st_size
            ended = size == 0 or os.pread(handle, 1, size - 1) == b"\n"
            file.write(("" if ended else "\n").encode() + line.encode("utf-8"))
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}.", "Give another file.") from error


def _check_rows(path: Path) -> None:
    """Raises RunError if the file's first row is of another shape: files hold rows of one shape only."""
    if not path.exists():
        return
    if not path.is_file():
        raise RunError(f"{path} is not a file.", "Give another name, such as talks.jsonl.")
    with path.open("rb") as file:
        first = next((line for line in iter(lambda: file.readline(READ_AT_MOST), b"") if line.strip()), b"")
    if not first:
        return
    try:
        row = json.loads(first)
    except ValueError:
        row = None
    if not isinstance(row, dict) or not isinstance(row.get("messages"), list):
        found = f"columns {', '.join(map(str, row))}" if isinstance(row, dict) else "something else than rows"
        raise RunError(
            f"{path} holds {found}, and a talk is a row of messages; nothing was written.",
            "Give another file, such as talks.jsonl.",
        )
