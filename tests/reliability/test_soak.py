"""Many accidents (`make soak`): at random moments, at every file operation, to every file."""

import os
import random
import shutil
import signal
import time

import pytest
from tests.soak import record

pytestmark = pytest.mark.soak


def test_killed_and_stopped_at_random_moments(lab, whole, tmp_path):
    """SOAK_KILLS times kill -9 and SOAK_STOPS times SIGTERM, a checkpoint after every update; every run ends the same."""
    seed = int(os.environ.get("SOAK_SEED", time.time_ns() % 10**6))
    counts = {9: int(os.environ.get("SOAK_KILLS", 200)), signal.SIGTERM: int(os.environ.get("SOAK_STOPS", 50))}
    draw, total, begun = random.Random(seed), len(lab.updates(whole)), time.monotonic()
    assert lab.train(tmp_path / "timed")["code"] == 0
    longest, runs, landed = time.monotonic() - begun, 0, {-9: 0, 143: 0, -15: 0}
    left = dict(counts)
    while any(left.values()):
        runs, folder = runs + 1, tmp_path / str(runs) / "run"
        while True:
            number = draw.choice([number for number, count in left.items() if count] or [0])
            crash = {"seconds": draw.uniform(0, longest), "signal": int(number)} if number else {}
            begun = (folder / "run.yaml").exists()
            answer = lab.resume(folder, crash) if begun else lab.train(folder, crash, save_steps=1)
            if answer["code"] == 0:
                break
            assert answer["code"] in landed, (seed, answer)
            landed[answer["code"]] += 1
            left[number] -= 1  # a signal that came too late is sent again
            if not (folder / "run.yaml").exists():
                shutil.rmtree(folder, ignore_errors=True)  # it ended before it began: nothing but a lock
        assert len(lab.updates(folder)) == total
        lab.assert_as_undisturbed(folder, whole)
        shutil.rmtree(folder)
    stopped = landed[143] + landed[-15]
    record("random moments", seed=seed, kill_9=landed[-9], sigterm=stopped, runs=runs, same_adapter=runs)


def test_the_power_fails_at_every_file_operation_of_a_save_in_a_run(lab, whole, tmp_path):
    """Of the third save of a real training and on, until the fourth is whole; each time the run goes on to its end."""
    operations, newest = 0, 1
    while newest < 3:
        folder = tmp_path / str(operations + 1) / "run"
        crash = {"save": 3, "file": operations + 1, "signal": 9}
        assert lab.train(folder, crash, save_steps=1, save_total_limit=2)["code"] == -9
        operations += 1
        done = lab.resume(folder)
        assert done["code"] == 0
        (found,) = [n for n in range(15) if f"from update {n} " in done["notes"][0]]
        assert newest <= found <= newest + 1, done["notes"]
        newest = found
        lab.assert_as_undisturbed(folder, whole)
        shutil.rmtree(folder)
        if operations == int(os.environ.get("SOAK_OPERATIONS", 10**6)):
            break
    record("power cut at a file operation of a save", operations=operations, same_adapter=operations)


def _flip(path, other):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


DAMAGES = {
    "cut in half": lambda path, other: os.truncate(path, path.stat().st_size // 2),
    "cut to nothing": lambda path, other: os.truncate(path, 0),
    "deleted": lambda path, other: path.unlink(),
    "one bit flipped": _flip,
    "filled with zeros": lambda path, other: path.write_bytes(bytes(path.stat().st_size)),
    "that of another update": lambda path, other: path.write_bytes(other.read_bytes()),
}


def test_every_damage_to_every_file_of_the_newest_checkpoint(lab, whole, tmp_path):
    stopped, tried = tmp_path / "stopped", 0
    settings = {"load_best_model_at_end": True, "eval_steps": 1}
    assert lab.train(tmp_path / "best", **settings)["code"] == 0
    assert lab.train(stopped, {"update": 7, "signal": 9}, **settings)["code"] == -9
    names = sorted(path.name for path in (stopped / "checkpoints" / "checkpoint-6").iterdir())
    assert len(names) == 7
    for name in names:
        for what, damage in DAMAGES.items():
            folder = shutil.copytree(stopped, tmp_path / "run")
            content, other = ((folder / "checkpoints" / f"checkpoint-{step}" / name).read_bytes() for step in (6, 4))
            damage(folder / "checkpoints" / "checkpoint-6" / name, folder / "checkpoints" / "checkpoint-4" / name)
            done = lab.resume(folder)
            assert done["code"] == 0, (name, what, done)
            if content != other or what != "that of another update":
                assert done["notes"][0].startswith("checkpoint-6 is damaged: "), (name, what, done)
                if (name, what) != ("manifest.json", "that of another update"):  # all other files are then not those it names
                    assert name in done["notes"][0]
                assert "going on from checkpoint-4" in done["notes"][0]
            assert lab.sha256(folder) == lab.sha256(tmp_path / "best"), (name, what)
            tried += 1
            shutil.rmtree(folder)
    record("damage matrix", files=len(names), kinds=len(DAMAGES), damages=tried, found_and_mended=tried)
