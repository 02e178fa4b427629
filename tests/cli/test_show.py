"""Proves that what a run shows can be typed, is about the user's own rows, and does not jump."""

import dataclasses
import shlex
from pathlib import Path

import pytest

from tunesmith.cli.show import QUESTION, Show, duration, next_commands, short_question
from tunesmith.data.conversation import Conversation, Message
from tunesmith.training.loop import StepReport


def talk(*asked: str) -> Conversation:
    return Conversation(tuple(Message(role, text) for text in asked for role in ("user", "assistant")), "row")


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        (["How do I true a wheel?"], "How do I true a wheel?"),
        (["two\nlines", "x" * 200, "", "It's \"mine\", isn't it?"], "It's \"mine\", isn't it?"),
        (["two\nlines"], QUESTION),
        ([], QUESTION),
    ],
)
def test_the_command_to_try_next_asks_what_the_users_rows_ask(asked: list[str], shown: str) -> None:
    lines = str(next_commands(Path("my runs/one"), short_question(map(talk, asked)))).strip().splitlines()
    ask, chat = (shlex.split(line[line.index("tunesmith") :]) for line in lines[1:3])
    assert ask == ["tunesmith", "chat", "my runs/one", "--prompt", shown]
    assert chat == ["tunesmith", "chat", "my runs/one"]


def test_the_time_left_is_that_of_recent_updates_not_of_a_slow_first_or_a_short_last_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    values = {field.name: 1 for field in dataclasses.fields(StepReport)} | {"total": 40, "loss": 0.5, "eval_loss": None}
    show = Show()
    show.every = 1
    for step, seconds in ((1, 90.0), (2, 9.0), (3, 5.0)):
        show(StepReport(**values | {"step": step, "seconds": seconds}))
    assert capsys.readouterr().out.splitlines()[-1].endswith("4 min 19 s left")  # 37 updates of 7 seconds


@pytest.mark.parametrize(
    ("seconds", "says"),
    [(0.4, "0 s"), (1, "1 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (1298, "21 min 38 s"), (7500, "2 h 5 min"), (-1, "0 s")],
)
def test_a_duration_is_told_with_its_units(seconds: float, says: str) -> None:
    assert duration(seconds) == says
