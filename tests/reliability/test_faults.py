"""Faults of the machine and of the data while a run is in them: said in plain words, with nothing lost that was saved."""

import json
import shutil


def newest(folder):
    """The update of the newest checkpoint."""
    return max(int(path.name.partition("-")[2]) for path in (folder / "checkpoints").glob("checkpoint-*"))


# ---- memory runs out, the GPU is lost


def test_memory_that_runs_out_costs_time_and_changes_no_update(lab, tmp_path):
    """Twice: each time the run takes the next way that needs less, from its newest checkpoint. Resumed, it keeps to that."""
    calm = {"lora_dropout": 0.0, "max_steps": 8, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    assert lab.train(tmp_path / "whole", **calm)["code"] == 0
    folder = tmp_path / "run"
    first = lab.train(folder, {"pass": 4, "raises": "memory", "signal": 9}, **calm)
    assert first["code"] == 0, first["error"]
    (said,) = [note for note in first["notes"] if note.startswith("Memory ran out")]
    assert "going on from update 2 with " in said
    before, after = (lab.updates(place) for place in (tmp_path / "whole", folder))
    assert [record["step"] for record in after] == list(range(1, 9))
    assert [record["trained"] for record in after] == [record["trained"] for record in before]
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(after, before)) <= 1e-6
    ways = [json.loads((folder / "checkpoints" / f"checkpoint-{n}" / "state.json").read_text())["origin"]["way"] for n in (6, 8)]
    assert ways[0] == ways[1]
    assert str(ways[0]) != str(json.loads((tmp_path / "whole/checkpoints/checkpoint-8/state.json").read_text())["origin"]["way"])


def test_where_no_way_takes_less_it_says_so_and_what_to_type(lab, whole, tmp_path):
    folder = tmp_path / "run"
    only = {"dequantize": "always", "gradient_checkpointing": False}
    failed = lab.train(folder, {"pass": 9, "raises": "memory"}, **only)
    assert failed["code"] == 2
    for word in ("Memory ran out", "takes least", f"tunesmith resume {folder}"):
        assert word in failed["error"]
    assert newest(folder) == 2
    assert lab.resume(folder)["code"] == 0


def test_a_gpu_that_is_lost_is_no_traceback_and_the_run_goes_on_later(lab, whole, tmp_path):
    folder = tmp_path / "run"
    failed = lab.train(folder, {"pass": 9, "raises": "device"})
    assert failed["code"] == 2
    assert "The GPU failed (CUDA error: unspecified launch failure)" in failed["error"]
    assert f"`tunesmith resume {folder}` goes on" in failed["error"]
    assert newest(folder) == 2
    assert lab.resume(folder)["code"] == 0
    lab.assert_as_undisturbed(folder, whole)


# ---- files that change, vanish, or cannot be written


def test_data_that_change_during_a_run_do_not_change_it_and_are_found_when_it_is_resumed(lab, whole, rows, tmp_path):
    data, folder = tmp_path / "rows.jsonl", tmp_path / "run"
    shutil.copy(rows, data)
    line = json.dumps({"prompt": "the wind", "completion": "is warm"}) + "\n"
    assert lab.train(folder, {"update": 3, "append": [str(data), line]}, data=str(data))["code"] == 0
    assert lab.sha256(folder) == lab.sha256(whole)
    assert lab.train(tmp_path / "other", {"update": 3, "append": [str(data), line], "signal": 9}, data=str(data))["code"] == -9
    refused = lab.resume(tmp_path / "other")
    assert refused["code"] == 2
    assert "data: rows was" in refused["error"]


def test_rows_in_another_order_are_other_data(lab, rows, tmp_path):
    data, folder = tmp_path / "rows.jsonl", tmp_path / "run"
    lines = rows.read_text().splitlines(keepends=True)
    data.write_text("".join(lines))
    assert lab.train(folder, {"update": 3, "signal": 9}, data=str(data))["code"] == -9
    data.write_text("".join([lines[1], lines[0], *lines[2:]]))
    refused = lab.resume(folder)
    assert refused["code"] == 2
    assert "data: rows was" in refused["error"]


def test_another_tokenizer_is_found(lab, tiny_model_folder, tmp_path):
    folder, model = tmp_path / "run", shutil.copytree(tiny_model_folder, tmp_path / "model")
    assert lab.train(folder, {"update": 3, "signal": 9}, model=str(model))["code"] == -9
    path = model / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-10]  # words fall into other pieces
    path.write_text(json.dumps(tokenizer))
    refused = lab.resume(folder)
    assert refused["code"] == 2
    assert "data: tokens was" in refused["error"]


def test_other_versions_are_told_and_recorded_and_do_not_stop_it(lab, whole, tmp_path):
    folder = tmp_path / "run"
    assert lab.train(folder, {"update": 3, "signal": 9, "versions": {"torch": "1.0"}})["code"] == -9
    done = lab.resume(folder)
    assert done["code"] == 0
    assert any("Last digits may differ" in note and "torch was 1.0" in note for note in done["notes"])
    assert json.loads((folder / "resumes.jsonl").read_text())["changed"]["machine: torch"][0] == "1.0"


def test_a_folder_that_vanishes_is_an_error_not_a_success(lab, tmp_path):
    folder = tmp_path / "run"
    failed = lab.train(folder, {"update": 5, "remove": str(folder)})
    assert failed["code"] == 2
    assert str(folder) in failed["error"]
    assert "No such file or directory" in failed["error"]
    assert not (folder / "adapter_model.safetensors").exists()


def test_a_folder_that_can_no_longer_be_written_ends_the_run_with_what_was_saved(lab, whole, tmp_path):
    folder = tmp_path / "run"
    failed = lab.train(folder, {"save": 3, "full": 2, "errno": "EROFS"})
    assert failed["code"] == 2
    for word in ("Read-only file system", "writable again", f"tunesmith resume {folder}"):
        assert word in failed["error"]
    assert newest(folder) == 2
    assert lab.resume(folder)["code"] == 0
    lab.assert_as_undisturbed(folder, whole)


def test_a_place_that_cannot_be_written_is_said_before_anything_is_trained(lab, tmp_path):
    (tmp_path / "file").write_text("mine")
    refused = lab.train(tmp_path / "file" / "run")
    assert refused["code"] == 2
    assert f"{tmp_path / 'file' / 'run'} cannot be written: Not a directory. Give another --output-dir." in refused["error"]
