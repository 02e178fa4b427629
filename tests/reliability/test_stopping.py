"""A run that is told to stop, by SIGTERM or Ctrl-C, at whatever it is doing: at once, with the exit code of that signal."""

import json
import os
import signal
import subprocess
import sys

import pytest

EVERY = [signal.SIGTERM, signal.SIGINT]


@pytest.mark.parametrize("number", EVERY)
def test_in_an_evaluation_the_update_before_it_is_saved_and_the_evaluation_made_when_the_run_goes_on(lab, whole, tmp_path, number):
    folder = tmp_path / "run"
    crash = {"evaluation": 2, "signal": number}
    assert lab.train(folder, crash, save_steps=100)["code"] == 128 + number
    assert len(lab.updates(folder)) == 5
    saved = folder / "checkpoints" / "checkpoint-6" / "state.json"
    assert json.loads(saved.read_text())["unevaluated"]["step"] == 6
    crash["evaluation"] = 1
    again = lab.resume(folder, crash)
    assert (again["code"], len(lab.updates(folder))) == (128 + number, 5)
    done = lab.resume(folder)
    assert "from update 6 " in done["notes"][0]
    lab.assert_as_undisturbed(folder, whole)


def test_in_the_evaluation_after_the_last_update_too(lab, whole, tmp_path):
    folder = tmp_path / "run"
    assert lab.train(folder, {"evaluation": 5, "signal": 15})["code"] == 143
    assert json.loads((folder / "manifest.json").read_text())["updates"] == {"done": 13, "of": 14}
    assert lab.resume(folder)["code"] == 0
    lab.assert_as_undisturbed(folder, whole)


def test_the_adapter_that_was_best_is_still_found_when_its_evaluation_was_stopped(lab, tmp_path):
    settings = {"load_best_model_at_end": True, "eval_steps": 1, "max_steps": 6}
    undisturbed, folder = tmp_path / "whole" / "run", tmp_path / "run"
    assert lab.train(undisturbed, **settings)["code"] == 0
    assert lab.train(folder, {"evaluation": 6, "signal": 15}, **settings)["code"] == 143
    assert lab.resume(folder)["code"] == 0
    lab.assert_as_undisturbed(folder, undisturbed)


@pytest.mark.parametrize("number", EVERY)
@pytest.mark.parametrize("doing", ["rows", "Loading", "answers"])
def test_while_rows_are_tokenised_the_model_is_loaded_or_questions_are_answered(lab, rows, whole, tmp_path, doing, number):
    folder, unseen = tmp_path / "run", tmp_path / rows.name
    unseen.write_text(rows.read_text() + json.dumps({"prompt": f"told {number}", "completion": doing}) + "\n")  # tokenised anew
    with_rows = {"data": str(unseen)} if doing == "rows" else {}
    assert lab.train(folder, {"event": doing, "signal": number}, **with_rows)["code"] == 128 + number
    assert (folder / "run.yaml").exists() == (doing == "answers")
    done = lab.resume(folder) if doing == "answers" else lab.train(folder)
    assert done["code"] == 0
    lab.assert_as_undisturbed(folder, whole)


def test_told_after_the_last_update_it_leaves_the_answers_for_later(lab, whole, tmp_path):
    folder, total = tmp_path / "run", len(lab.updates(whole))
    assert lab.train(folder, {"update": total, "signal": 15})["code"] == 143
    assert lab.sha256(folder) == lab.sha256(whole)
    assert lab.resume(folder)["code"] == 0
    lab.assert_as_undisturbed(folder, whole)


@pytest.mark.parametrize("number", EVERY)
def test_told_twice_it_ends_at_once_and_loses_only_what_was_not_saved(lab, whole, tmp_path, number):
    folder = tmp_path / "run"
    assert lab.train(folder, {"update": 5, "signals": [int(number)] * 2})["code"] == 128 + number
    assert not (folder / "adapter_model.safetensors").exists()
    done = lab.resume(folder)
    assert "from update 4 " in done["notes"][0]
    lab.assert_as_undisturbed(folder, whole)


def test_told_twice_while_rows_are_streamed_it_does_not_wait_for_them(lab, tmp_path):
    """The shard that is read meanwhile has no end."""
    folder, undisturbed, small = tmp_path / "run", tmp_path / "whole" / "run", {"rows_a_shard": 9}
    streamed = {"streaming": True, "max_steps": 8, "save_steps": 1, "packing": "none"}
    stopped = lab.train(folder, {**small, "shard": 2, "signals": [signal.SIGINT, signal.SIGTERM]}, **streamed)
    assert (stopped["code"], stopped["error"]) == (143, None)
    assert lab.resume(folder, small)["code"] == 0
    assert lab.train(undisturbed, small, **streamed)["code"] == 0
    assert lab.sha256(folder) == lab.sha256(undisturbed)
    assert lab.updates(folder) == lab.updates(undisturbed)


def test_told_after_the_first_update_of_a_rate_that_has_yet_to_rise_it_is_no_error(lab, tmp_path):
    done = lab.train(tmp_path / "run", {"update": 1, "signal": 15}, warmup_steps=5)
    assert done["code"] == 143, done["error"]


@pytest.mark.parametrize("number", EVERY)
def test_the_command_ends_with_the_code_shells_and_schedulers_expect(tiny_model_folder, rows, tmp_path, number):
    command = [sys.executable, "-m", "tunesmith.cli.main", "train", str(tiny_model_folder), str(rows), "--max-steps", "3000",
               "--logging-steps", "1", "--output-dir", str(tmp_path / "run")]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            if line.startswith("update 3/"):
                process.send_signal(number)
                break
        rest = process.stdout.read()
    assert process.returncode == 128 + number
    assert "Stopped after update" in rest
    assert f"tunesmith resume {tmp_path}" in "".join(rest.split("\n"))
    assert "Traceback" not in rest
    assert "Done." not in rest
