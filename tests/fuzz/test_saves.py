"""Saves, kills at any file operation, damage and going on, in any order: the newest whole state is always found, and is what was
saved. A few histories are part of every test run; `make soak` lives through many (``SOAK_HISTORIES``)."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from tests.soak import record

from tunesmith.errors import RunError
from tunesmith.training.checkpoint import checkpoints, keep_newest, newest_checkpoint, save_checkpoint, set_aside
from tunesmith.training.state import Position, State
from tunesmith.training.workshop import remove_leftovers

FILES = ["adapter.safetensors", "optimizer.safetensors", "random.safetensors", "metrics.jsonl", "state.json", "manifest.json"]
OPERATIONS = ("mkdir", "open", "write", "fsync", "rename", "unlink", "rmdir")
MOST_OPERATIONS = 60
"""More than a save and the removal of three older checkpoints make."""


class KilledError(BaseException):
    """The process is gone: nothing that handles errors sees it."""


@contextmanager
def killed_at(number: int) -> Iterator[None]:
    """Die in the file operation of this number; of a write, half is done."""
    count, real = 0, {name: getattr(os, name) for name in OPERATIONS}

    def deadly(name: str) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                if name == "write":
                    real[name](args[0], bytes(args[1])[: len(args[1]) // 2])
                raise KilledError
            return real[name](*args, **named)

        return call

    try:
        for name in OPERATIONS:
            setattr(os, name, deadly(name))
        yield
    finally:
        for name, function in real.items():
            setattr(os, name, function)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


DAMAGES = (truncate, flip, zero, Path.unlink)
lived: dict[str, int] = dict.fromkeys(("saves", "kills", "damages", "resumes"), 0)


class Saves(RuleBasedStateMachine):
    """What lies in the folder, as it should: present, steps in order, and those of them that are damaged."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.step = self.draw = 0
        self.present: list[int] = []
        self.damaged: set[int] = set()
        self.saved: dict[int, torch.Tensor] = {}

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    def _state(self) -> State:
        """Of the next update; no two are alike, not even of one step."""
        self.step, self.draw = self.step + 1, self.draw + 1
        adapter = torch.tensor([float(self.step), float(self.draw)])
        return State(Position(self.step), {"A": adapter}, {"m": adapter + 1}, {"n": self.draw}, {"cpu": torch.zeros(3).byte()})

    def _save(self, state: State, limit: int) -> None:
        save_checkpoint(self.root, state, {"base": "x"}, b"{}\n" * self.step)
        keep_newest(self.root, limit)

    @rule(limit=st.integers(1, 3))
    def save(self, limit: int) -> None:
        state = self._state()
        self._save(state, limit)
        self.present = [*self.present, self.step][-limit:]
        self.damaged &= set(self.present[:-1])  # a step may be made again after one that was given up
        self.saved[self.step] = state.adapter["A"]
        lived["saves"] += 1

    @rule(limit=st.integers(1, 3), operation=st.integers(1, MOST_OPERATIONS))
    def save_and_be_killed(self, limit: int, operation: int) -> None:
        state, before = self._state(), list(self.present)
        try:
            with killed_at(operation):
                self._save(state, limit)
        except KilledError:
            lived["kills"] += 1
        remove_leftovers(self.root)
        self.present = [int(path.name.removeprefix("checkpoint-")) for path in checkpoints(self.root)]
        if self.step not in self.present:
            assert self.present == before, "an older state was given up before the new one was there"
            self.step -= 1
        else:
            assert set(self.present) >= set([*before, self.step][-limit:]), "more was removed than was to be"
            self.damaged &= set(self.present[:-1])
            self.saved[self.step] = state.adapter["A"]

    @precondition(lambda self: self.present)
    @rule(data=st.data(), name=st.sampled_from(FILES), damage=st.sampled_from(DAMAGES))
    def damage(self, data: st.DataObject, name: str, damage: Callable[[Path], None]) -> None:
        step = data.draw(st.sampled_from(self.present))
        path = self.root / f"checkpoint-{step}" / name
        if step not in self.damaged and path.stat().st_size:
            damage(path)
            self.damaged.add(step)
            lived["damages"] += 1

    @rule()
    def go_on(self) -> None:
        lived["resumes"] += 1
        whole = [step for step in self.present if step not in self.damaged]
        bad = [step for step in reversed(self.present) if not whole or step > whole[-1]]
        if bad and not whole:
            with pytest.raises(RunError, match=f"checkpoint-{bad[0]}: "):
                newest_checkpoint(self.root)
        else:
            found, named = newest_checkpoint(self.root)
            assert [path.name for path, _ in named] == [f"checkpoint-{step}" for step in bad]
            assert (found is None) == (not whole)
            if found is not None:
                assert found.state.position.step == whole[-1]
                assert torch.equal(found.state.adapter["A"], self.saved[whole[-1]])
        for step in bad:
            assert set_aside(self.root / f"checkpoint-{step}").is_dir()
        self.present = [step for step in self.present if step not in bad]
        self.damaged -= set(bad)
        self.step = whole[-1] if whole else 0


def live_through(histories: int) -> None:
    run_state_machine_as_test(Saves, settings=settings(max_examples=histories, stateful_step_count=20, deadline=None))


def test_whatever_happens_to_saves_the_newest_whole_state_is_found() -> None:
    live_through(30)


@pytest.mark.soak
def test_whatever_happens_many_times() -> None:
    histories = int(os.environ.get("SOAK_HISTORIES", 5000))
    lived.update(dict.fromkeys(lived, 0))
    live_through(histories)
    record("histories of saves", histories=histories, **lived)
