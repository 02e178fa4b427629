"""Proves that a rehearsal calls every kernel as it must be called, for families of joined and of separate linears."""

import sys
import threading
from contextlib import suppress

import pytest
import torch

from tunesmith.kernels.segments import Segments

rehearsal = pytest.importorskip("tunesmith.kernels.fused.rehearsal", reason="needs triton")


def _widths(**changes):
    settings = {
        "hidden": 64, "inner": 96, "heads": 4, "key_heads": 2, "head_dim": 16, "vocab": 300, "rank": 8, "groups": (1, 2, 3),
        "dropout": True, "dtype": torch.float32, "quantised": True,
    }  # fmt: skip
    return rehearsal.Widths(**(settings | changes))


@pytest.mark.parametrize(
    "changes", [{}, {"groups": (1,), "dropout": False, "quantised": False}, {"dtype": torch.bfloat16, "key_heads": 4}]
)
def test_every_task_runs(device, changes):
    widths = _widths(**changes)
    pack = Segments((20, 12), (-1, -1), torch.device(device), blocks=10)
    probe = Segments.of([12], device=device)
    tasks = [*rehearsal._forward_tasks(widths, pack, probe), *rehearsal._training_tasks(widths, pack)]
    for task in tasks:
        task()
    assert len(tasks) >= 14


@pytest.mark.parametrize("where", ["_forward_tasks", "_training_tasks", None])
def test_the_interpreter_has_its_turns_back_whatever_happens(device, monkeypatch, where):
    def broken(*args):
        raise MemoryError

    if where:
        monkeypatch.setattr(rehearsal, where, broken)
    before, pack = sys.getswitchinterval(), Segments.of([12], device=device)
    with suppress(MemoryError), rehearsal.rehearsal(_widths(groups=(1,)), pack, pack):
        assert where is None
        assert sys.getswitchinterval() < before
        raise MemoryError
    for thread in threading.enumerate():
        if thread.name.startswith("compile"):
            thread.join()
    assert sys.getswitchinterval() == before


def test_an_error_in_a_task_is_left_to_the_one_who_calls_the_kernel(device, monkeypatch):
    def broken(*args):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(rehearsal.gated, "gated_forward", broken)
    monkeypatch.setattr(rehearsal, "_training_tasks", lambda *args: [])
    pack = Segments.of([12], device=device)
    with rehearsal.rehearsal(_widths(groups=(1,)), pack, pack):
        pass
