"""However a run ends, it goes on to the end it would have had: bit for bit, with every update in its records once."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

# ---- the same end


def test_killed_after_every_single_update(lab, whole, tmp_path):
    """Saved after every update; killed after each but the last, before it is saved, and then after each once it was."""
    total, folder = len(lab.updates(whole)), tmp_path / "run"
    assert lab.train(folder, {"update": 1, "signal": 9}, save_steps=1)["code"] == -9
    for step in range(2, total + 1):
        # killed at update `step`: the one before is the newest that was saved, and is gone on from next time
        assert lab.resume(folder, {"update": step, "signal": 9})["code"] == -9
        assert (folder / "checkpoints" / f"checkpoint-{step - 1}").is_dir()
    assert lab.resume(folder)["code"] == 0
    lab.assert_as_undisturbed(folder, whole)


def test_killed_in_the_middle_of_a_window_of_an_evaluation_and_of_a_save(lab, whole, tmp_path):
    folder = tmp_path / "run"
    accidents = [
        {"pass": 2, "signal": 9},  # in the very first window
        {"pass": 11, "signal": 9},
        {"evaluation": 2, "signal": 9},
        {"save": 1, "file": 9, "signal": 9},
        {"save": 2, "file": 32, "signal": 9},
        {"pass": 4, "signal": signal.SIGKILL},
        {"update": len(lab.updates(whole)), "signal": 9},
    ]
    assert json.loads((whole / "checkpoints/checkpoint-12/state.json").read_text())["position"]["micro_batches"] > 24
    assert lab.train(folder, accidents[0])["code"] == -9
    for accident in accidents[1:]:
        assert lab.resume(folder, accident)["code"] == -9, accident
    assert lab.resume(folder)["code"] == 0
    lab.assert_as_undisturbed(folder, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_saves_between_two_updates_and_leaves_an_adapter(lab, whole, tmp_path, number):
    folder = tmp_path / "run"
    first = lab.train(folder, {"update": 5, "signal": number}, save_steps=100)
    assert first["code"] == 128 + number
    assert "Stopped after update 5 of 14; saving what was reached" in " ".join(first["notes"])
    assert len(lab.updates(folder)) == 5
    assert (folder / "adapter_model.safetensors").is_file()
    assert not (folder / "checkpoints" / "checkpoint-6").exists()
    second = lab.resume(folder, {"pass": 5, "signal": number})  # within a window: that one is finished first
    assert second["code"] == 128 + number
    assert "from update 5" in " ".join(second["notes"])
    assert 5 < len(lab.updates(folder)) < 14
    assert lab.resume(folder)["code"] == 0
    lab.assert_as_undisturbed(folder, whole)


@pytest.mark.parametrize(
    "settings",
    [
        {"packing": "wrapped", "load_best_model_at_end": True, "eval_steps": 2},
        {"packing": "none", "shared_prefix": False, "gradient_checkpointing": True, "lr_scheduler_type": "cosine"},
        {"use_dora": True, "lora_bias": "all", "memory": "1MB", "warmup_steps": 3},
    ],
    ids=["wrapped, best kept", "no packing, recomputed", "DoRA, biases, hardly any memory"],
)
def test_other_ways_to_run_end_the_same_too(lab, tmp_path, settings):
    undisturbed, folder = tmp_path / "whole", tmp_path / "run"
    assert lab.train(undisturbed, max_steps=8, **settings)["code"] == 0
    assert lab.train(folder, {"update": 6, "signal": 9}, max_steps=8, save_steps=3, **settings)["code"] == -9
    assert lab.resume(folder, {"update": 7, "signal": 9})["code"] == -9
    assert lab.resume(folder)["code"] == 0
    assert lab.sha256(folder) == lab.sha256(undisturbed)
    assert lab.updates(folder) == lab.updates(undisturbed)


def test_the_best_adapter_is_the_one_of_the_lowest_held_out_loss(lab, tmp_path):
    from safetensors.torch import load_file

    folder = tmp_path / "run"
    # at such a rate the second update makes worse what the first made better
    done = lab.train(
        folder, load_best_model_at_end=True, learning_rate=0.3, lr_scheduler_type="constant", max_steps=2, eval_steps=1
    )
    losses = {record["step"]: record["eval_loss"] for record in lab.updates(folder)}
    assert losses[1] < losses[2]
    assert "The adapter is that of update 1," in " ".join(done["notes"])
    kept, saved = (load_file(folder / name) for name in ("checkpoints/checkpoint-2/best.safetensors", "adapter_model.safetensors"))
    assert {name.replace(".default", ""): value.tolist() for name, value in kept.items()} == {
        name: value.tolist() for name, value in saved.items()
    }


def test_the_best_adapter_needs_held_out_rows(lab, tmp_path):
    refused = lab.train(tmp_path / "run", load_best_model_at_end=True, val_size=0)
    assert refused["code"] == 2
    assert "held-out rows" in refused["error"]
    assert not (tmp_path / "run").exists()


def test_a_finished_run_has_nothing_left_to_do(lab, whole):
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    again = lab.resume(whole)
    assert (again["code"], again["notes"]) == (0, [f"{whole} is finished; there is nothing left to do"])
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before


# ---- crashes of a save, damaged checkpoints, full disks


def test_power_lost_at_any_file_operation_of_a_save_leaves_a_whole_checkpoint_of_the_last_save_or_the_one_before(lab, tmp_path):
    """Files not yet synced lose their second half, renames not yet synced are undone."""
    from tunesmith.training.checkpoint import newest_checkpoint

    found = []
    for operation in range(1, 1000):
        root = tmp_path / str(operation)
        root.mkdir()
        code = lab.ask(call="saves", root=str(root), crash={"save": 2, "file": operation, "signal": 9})["code"]
        checkpoint, damaged = newest_checkpoint(root)
        assert damaged == []
        found.append(checkpoint.state.position.step)
        assert checkpoint.state.adapter["x"].unique().tolist() == [found[-1]]
        if code == 0:
            break
    assert len(found) > 40  # files of a checkpoint, each opened, written, synced and closed, and more
    assert found == sorted(found)
    assert (found[0], found[-1]) == (1, 2)


@pytest.fixture
def stopped(lab, tmp_path):
    """A run killed after update 7, with checkpoints of updates 4 and 6."""
    assert lab.train(tmp_path / "run", {"update": 7, "signal": 9})["code"] == -9
    return tmp_path / "run"


def test_a_damaged_checkpoint_is_named_and_set_aside_and_the_one_before_is_gone_on_from(lab, whole, stopped):
    damaged = stopped / "checkpoints" / "checkpoint-6" / "optimizer.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-5] ^= 4
    damaged.write_bytes(content)
    done = lab.resume(stopped)
    assert done["code"] == 0
    assert done["notes"][0] == (
        "checkpoint-6 is damaged: optimizer.safetensors is not what was saved (its SHA-256 differs); going on from checkpoint-4"
    )
    assert (stopped / "checkpoints" / "damaged-checkpoint-6" / "optimizer.safetensors").read_bytes() == content
    lab.assert_as_undisturbed(stopped, whole)


def test_neither_the_clock_nor_a_file_that_is_not_of_it_decides_what_is_gone_on_from(lab, whole, stopped):
    """The newer checkpoint has the older date, as after a clock was set back, and others' files stand in both."""
    for step, seconds in ((4, 2_000_000_000), (6, 1_000_000_000)):
        folder = stopped / "checkpoints" / f"checkpoint-{step}"
        (folder / "optimizer.pt").write_bytes(b"not ours")
        for path in (*folder.iterdir(), folder):
            os.utime(path, (seconds, seconds))
    done = lab.resume(stopped)
    assert "from update 6 (checkpoint-6)" in done["notes"][0]
    lab.assert_as_undisturbed(stopped, whole)


def test_with_no_whole_checkpoint_left_it_says_so_and_touches_nothing(lab, stopped):
    for path in (stopped / "checkpoints").glob("checkpoint-*"):
        (path / "state.json").unlink()
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file() and path.name != "lock"}
    refused = lab.resume(stopped)
    assert refused["code"] == 2
    for word in ("checkpoint-4: state.json is missing", "checkpoint-6: state.json is missing", "Train anew"):
        assert word in refused["error"]
    assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file() and path.name != "lock"} == before


def test_an_adapter_without_a_checkpoint_is_not_trained_over(lab, whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    (folder / "manifest.json").unlink()
    shutil.rmtree(folder / "checkpoints")
    refused = lab.resume(folder)
    assert refused["code"] == 2
    assert "holds an adapter, but no checkpoint" in refused["error"]
    assert lab.sha256(folder) == lab.sha256(whole)


def test_killed_before_its_first_checkpoint_it_begins_at_the_start(lab, whole, tmp_path):
    folder = tmp_path / "run"
    assert lab.train(folder, {"save": 1, "file": 3, "signal": 9})["code"] == -9
    done = lab.resume(folder)
    assert "from the start: it has no checkpoint yet" in done["notes"][0]
    lab.assert_as_undisturbed(folder, whole)


def test_a_disk_that_fills_up_during_a_save_is_said_in_bytes_and_costs_nothing_that_was_saved(lab, whole, tmp_path):
    folder = tmp_path / "run"
    full = lab.train(folder, {"save": 3, "full": 4})
    assert full["code"] == 2
    for word in ("The disk is full", "bytes are free", f"tunesmith resume {folder}"):
        assert word in full["error"]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["checkpoint-0", "checkpoint-2", "lock"]
    assert lab.resume(folder)["code"] == 0
    lab.assert_as_undisturbed(folder, whole)


def test_a_disk_too_small_for_the_run_is_said_before_it_starts(lab, tmp_path):
    refused = lab.train(tmp_path / "run", save_total_limit=10**10)
    assert refused["code"] == 2
    assert "bytes needed" in refused["error"]
    assert "free in" in refused["error"]
    assert not (tmp_path / "run").exists()


# ---- one process a run


def test_a_run_that_another_process_is_in_is_refused_and_that_process_named(lab, stopped):
    from tunesmith.training.lock import RunLock

    with RunLock(stopped):
        for refused in (lab.resume(stopped), lab.train(stopped)):
            assert refused["code"] == 2
            assert f"in use by process {os.getpid()} on " in refused["error"]
    assert "is not empty" in lab.train(stopped)["error"]


# ---- something else than it began with


@pytest.mark.parametrize("what", ["settings", "data", "base", "template"])
def test_going_on_with_something_else_is_refused_unless_allowed_and_then_recorded(lab, tiny_model_folder, rows, tmp_path, what):
    folder, model, data = tmp_path / "run", shutil.copytree(tiny_model_folder, tmp_path / "model"), tmp_path / "rows.jsonl"
    shutil.copy(rows, data)
    settings = {"model": str(model), "data": str(data)}
    assert lab.train(folder, {"update": 3, "signal": 9}, **settings)["code"] == -9
    expected = CHANGES[what](folder, model, data)
    refused = lab.resume(folder)
    assert refused["code"] == 2
    assert expected in refused["error"]
    assert "--allow-changed" in refused["error"]
    assert not (folder / "resumes.jsonl").exists()
    assert lab.resume(folder, allow_changed=True)["code"] == 0
    changed = json.loads((folder / "resumes.jsonl").read_text())["changed"]
    assert expected.split(" was ")[0] in changed


def _edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def _change_settings(folder, model, data):
    _edit(folder / "run.yaml", "learning_rate: 0.01", "learning_rate: 0.02")
    return "learning_rate was 0.01 and is 0.02"


def _change_data(folder, model, data):
    _edit(data, "the camp is cold", "the camp is warm")
    return "data: rows was "


def _change_base(folder, model, data):
    path = model / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    return "base: files was "


def _change_template(folder, model, data):
    _edit(model / "chat_template.jinja", "{% for message", "Hello. {% for message")
    return "chat template was "


CHANGES = {"settings": _change_settings, "data": _change_data, "base": _change_base, "template": _change_template}


# ---- the command


def test_the_command_goes_on_and_says_what_is_wrong(lab, whole, stopped, tmp_path, capsys):
    from tunesmith.cli.main import main

    assert main(["resume", str(tmp_path / "nothing")]) == 2
    assert "There is no run" in capsys.readouterr().err
    command = [sys.executable, "-m", "tunesmith.cli.main", "resume", str(stopped)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True)
    assert "from update 6 (checkpoint-6)" in " ".join(done.stdout.split())
    lab.assert_as_undisturbed(stopped, whole)
    assert main(["resume", str(stopped)]) == 0
    assert "nothing left to do" in capsys.readouterr().out
