"""Proves that a checkpoint comes back exactly, that every damage to one is found and named, and that a lock is one process's."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.base import disk
from tunesmith.errors import RunError
from tunesmith.recipe import Recipe
from tunesmith.training.checkpoint import (
    checkpoints,
    keep_newest,
    newest_checkpoint,
    read_checkpoint,
    save_checkpoint,
    set_aside,
)  # fmt: skip
from tunesmith.training.keeper import Keeper, RunKeeper
from tunesmith.training.lock import RunLock, holder_of
from tunesmith.training.optimizer import make_optimizer
from tunesmith.training.state import Best, Position, State, host_copy, optimizer_state, put_adapter, set_optimizer_state
from tunesmith.training.workshop import remove_leftovers

FILES = [
    "adapter.safetensors", "optimizer.safetensors", "random.safetensors", "best.safetensors", "metrics.jsonl", "state.json",
    "manifest.json",
]  # fmt: skip


def state(step: int) -> State:
    generator = torch.Generator().manual_seed(step)
    adapter = {"layers.0.A": torch.randn(4, 8, generator=generator), "é": torch.randn(3, generator=generator).bfloat16()}
    optimizer = {"0.step": torch.tensor(float(step)), "0.exp_avg": torch.randn(4, 8, generator=generator)}
    best = Best(step, 0.1 * step, {"layers.0.A": torch.full((4, 8), float(step))})
    return State(Position(step, 1, 2, 3 * step), adapter, optimizer, {"1.step": step}, {"cpu": torch.full((9,), step).byte()}, best)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Checkpoints of updates 3 and 12, no file of which is the same."""
    for step in (3, 12):
        save_checkpoint(tmp_path, state(step), {"base": f"ünï {step}"}, b'{"step": %d}\n' % step)
    return tmp_path


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[k].dtype == other[k].dtype and torch.equal(one[k], other[k]) for k in one)


def test_a_checkpoint_comes_back_as_it_was_saved_and_the_newest_is_by_number_not_by_name(root: Path) -> None:
    found, damaged = newest_checkpoint(root)
    assert found is not None
    assert damaged == []
    saved, got = state(12), found.state
    assert (got.position, got.counts) == (saved.position, saved.counts)
    assert all(same(getattr(got, part), getattr(saved, part)) for part in ("adapter", "optimizer", "random"))
    assert got.best is not None
    assert (got.best.step, got.best.loss) == (12, 0.1 * 12)
    assert (found.origin, found.metrics) == ({"base": "ünï 12"}, b'{"step": 12}\n')


def test_a_checkpoint_holds_no_pickle_and_nothing_is_left_beside_it(root: Path) -> None:
    assert sorted(path.name for path in (root / "checkpoint-12").iterdir()) == sorted(FILES)
    assert sorted(path.name for path in root.iterdir()) == ["checkpoint-12", "checkpoint-3"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def remove(path: Path) -> None:
    path.unlink()


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def swap(path: Path) -> None:
    shutil.copy(path.parent.parent / "checkpoint-3" / path.name, path)


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = [truncate, halve, empty, remove, zero, swap, folder_instead, grow]
DAMAGED = [(name, damage) for name in FILES for damage in DAMAGES]
DAMAGED.remove(("manifest.json", grow))  # a blank at the end of JSON changes nothing


@pytest.mark.parametrize(("name", "damage"), DAMAGED, ids=[f"{damage.__name__} {name}" for name, damage in DAMAGED])
def test_every_damage_to_a_file_is_named_and_the_checkpoint_before_is_found(root: Path, name: str, damage) -> None:
    damage(root / "checkpoint-12" / name)
    found, damaged = newest_checkpoint(root)
    assert found is not None
    assert found.folder.name == "checkpoint-3"
    ((path, what),) = damaged
    assert path.name == "checkpoint-12"
    # under another's manifest it is the first file that differs
    assert ("SHA-256" if name == "manifest.json" and damage is swap else name) in what


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_every_flipped_bit_is_found(root: Path, data: st.DataObject) -> None:
    path = root / "checkpoint-12" / data.draw(st.sampled_from(FILES))
    content = path.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    flipped = bytearray(content)
    flipped[bit // 8] ^= 1 << bit % 8
    try:
        path.write_bytes(flipped)
        found, damaged = newest_checkpoint(root)
        if path.name == "manifest.json" and _says_the_same(content, bytes(flipped)):
            return
        assert found is not None
        assert found.folder.name == "checkpoint-3"
        assert path.name in damaged[0][1]
    finally:
        path.write_bytes(content)


def _says_the_same(content: bytes, flipped: bytes) -> bool:
    """Whether JSON with a flipped bit has the same meaning: one blank became another."""
    try:
        return bool(json.loads(content) == json.loads(flipped))
    except ValueError:
        return False


def test_a_checkpoint_under_another_number_is_not_taken(root: Path) -> None:
    (root / "checkpoint-12").rename(root / "checkpoint-20")
    found, damaged = newest_checkpoint(root)
    assert found is not None
    assert found.folder.name == "checkpoint-3"
    assert damaged == [(root / "checkpoint-20", "it is that of update 12 under another name")]


def test_a_manifest_of_another_format_is_said_to_be_that(root: Path) -> None:
    from tunesmith.training.checkpoint import _own_sha256

    path = root / "checkpoint-12" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    manifest["format"] = 2
    path.write_text(json.dumps({**manifest, "sha256": _own_sha256(manifest)}))
    assert "format 2" in newest_checkpoint(root)[1][0][1]


def test_none_is_no_error_and_all_damaged_is_one(tmp_path: Path, root: Path) -> None:
    (tmp_path / "none").mkdir()
    assert newest_checkpoint(tmp_path / "none") == (None, [])
    assert newest_checkpoint(tmp_path / "nowhere") == (None, [])
    for path in checkpoints(root):
        empty(path / "manifest.json")
    with pytest.raises(RunError, match=r"checkpoint-12: manifest.json is damaged; checkpoint-3: manifest.json is damaged"):
        newest_checkpoint(root)


def test_the_newest_are_kept_and_other_names_left_alone(root: Path) -> None:
    (root / "checkpoint-best").mkdir()
    save_checkpoint(root, state(13), {}, b"")
    keep_newest(root, 2)
    assert sorted(path.name for path in root.iterdir()) == ["checkpoint-12", "checkpoint-13", "checkpoint-best"]
    keep_newest(root, 5)
    assert len(checkpoints(root)) == 2


def test_a_damaged_checkpoint_set_aside_is_never_overwritten_by_the_next(root: Path) -> None:
    assert set_aside(root / "checkpoint-12").name == "damaged-checkpoint-12"
    save_checkpoint(root, state(12), {}, b"")
    assert set_aside(root / "checkpoint-12").name == "damaged-checkpoint-12-2"


def test_leftovers_of_a_crash_are_removed_and_nothing_else(root: Path) -> None:
    (root / ".tmp-checkpoint-14").mkdir()
    (root / ".tmp-checkpoint-14" / "adapter.safetensors").write_bytes(b"half")
    (root / ".tmp-metrics.jsonl").write_bytes(b"half")
    remove_leftovers(root)
    assert sorted(path.name for path in root.iterdir()) == ["checkpoint-12", "checkpoint-3"]


def test_a_save_that_cannot_be_written_leaves_nothing_of_it(root: Path, tmp_path: Path) -> None:
    (root / "checkpoint-14").write_text("a file where the folder should go")
    with pytest.raises(OSError, match="checkpoint-14"):
        save_checkpoint(root, state(14), {}, b"")
    assert not list(root.glob(".tmp-*"))


def test_too_full_a_disk_is_said_in_bytes(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"too full for the run: 10,000,000,000,000,000,000 bytes needed, [\d,]+ free in"):
        disk.check_room(tmp_path, 10**19, "the run")


def test_the_optimizer_goes_on_exactly(tmp_path: Path) -> None:
    def train(parameters, optimizer, steps) -> None:
        for step in steps:
            for parameter in parameters:
                parameter.grad = torch.sin(parameter.detach() * (step + 1))
            optimizer.step()

    def make():
        torch.manual_seed(1)
        parameters = [torch.nn.Parameter(torch.randn(5)), torch.nn.Parameter(torch.randn(2, 3))]
        return parameters, make_optimizer(parameters, Recipe(), 1e-2, torch.device("cpu"))

    whole, first, second = make(), make(), make()
    train(*whole, range(6))
    train(*first, range(3))
    put_adapter(dict(zip("ab", second[0])), host_copy(dict(zip("ab", first[0]))))
    set_optimizer_state(second[1], *optimizer_state(first[1]))
    train(*second, range(3, 6))
    assert all(torch.equal(mine, expected) for mine, expected in zip(second[0], whole[0]))


def test_what_is_saved_is_a_snapshot() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    copy = host_copy({"a": parameter})
    with torch.no_grad():
        parameter.zero_()
    assert copy["a"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("adapter", [{}, {"a": torch.ones(2)}, {"a": torch.ones(3), "b": torch.ones(1)}])
def test_another_adapters_tensors_are_refused(adapter: dict[str, torch.Tensor]) -> None:
    with pytest.raises(RunError, match="another adapter"):
        put_adapter({"a": torch.nn.Parameter(torch.zeros(3))}, adapter)


def test_when_a_state_is_due(tmp_path: Path) -> None:
    def due(asked: bool = False, **settings) -> list[int]:
        keeper = RunKeeper(tmp_path, Recipe(**settings), {}, lambda: asked)
        return [step for step in range(8) if keeper.due(step, 7)]

    assert due() == [0, 7]
    assert due(save_steps=3) == [0, 3, 6, 7]
    assert due(save_minutes=1e-9) == list(range(8))
    assert due(save_minutes=0, save_steps=5) == [0, 5, 7]
    assert due(asked=True) == list(range(8))
    assert not Keeper().due(0, 7)


# ---- the lock


def test_a_lock_is_held_until_it_is_let_go_and_then_free(tmp_path: Path) -> None:
    assert holder_of(tmp_path) is None
    with RunLock(tmp_path):
        assert f"process {os.getpid()} on " in (holder_of(tmp_path) or "")
        with pytest.raises(RunError, match=f"in use by process {os.getpid()} on "), RunLock(tmp_path):
            pass
    assert holder_of(tmp_path) is None
    with RunLock(tmp_path):
        pass


@pytest.mark.parametrize("system_locks", [True, False], ids=["with fcntl", "without"])
def test_a_dead_processs_lock_is_taken_over_and_a_living_ones_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system_locks: bool
) -> None:
    from tunesmith.training import lock

    if not system_locks:
        monkeypatch.setattr(lock, "fcntl", None)
    program = (
        "import sys; from pathlib import Path; from tunesmith.training import lock\n"
        f"if not {system_locks}: lock.fcntl = None\n"
        f"held = lock.RunLock(Path({str(tmp_path)!r})).__enter__(); print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdin is not None
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(RunError, match=f"in use by process {other.pid} on .*, started "), RunLock(tmp_path):
        pass
    other.kill()
    other.wait()
    other.stdin.close()
    other.stdout.close()
    with RunLock(tmp_path):
        assert json.loads((tmp_path / "checkpoints" / "lock").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', "\x00\x01", '{"pid": 1, "started": "x", "host": null}'])
def test_a_damaged_lock_file_of_nobody_is_taken_over(tmp_path: Path, text: str) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "lock").write_text(text)
    with RunLock(tmp_path):
        assert holder_of(tmp_path)


def test_a_checkpoint_of_the_first_format_is_still_read() -> None:
    """Written by tunesmith 0.1.0 and kept: it comes back number for number."""
    folder = Path(__file__).parents[1] / "reliability" / "format-1" / "checkpoint-3"
    found = read_checkpoint(folder)
    state = found.state
    assert state.position == Position(step=3, epoch=1, window=0, micro_batches=6)
    assert state.adapter["layer.lora_A"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert state.adapter["layer.lora_B"].tolist() == [[0.5, 0.5]] * 3
    assert state.optimizer["0.exp_avg"].tolist() == [[1.0] * 3] * 2
    assert state.counts == {"0.step": 3.0}
    assert state.random["cpu"].tolist() == list(range(16))
    assert state.best is not None
    assert (state.best.step, state.best.loss) == (2, 1.25)
    assert state.unevaluated is None
    assert (found.origin, found.metrics) == ({"settings": {"seed": 42}}, b'{"step": 3}\n')
