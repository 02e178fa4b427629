"""Proves that what a user names is looked for before libraries are imported that take seconds, and is told for what it is."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml

from tunesmith.errors import ModelError, RunError
from tunesmith.places import check_adapter, check_held_out, check_model, check_recipe, check_run
from tunesmith.recipe import Recipe

REFUSED = [
    ["train", "no-such-folder/", "yoda"],
    ["train", "no-such.gguf", "yoda"],
    ["train", "org/none", "yoda"],
    *(["train", name, "yoda"] for name in ("smollm2 135m", "my run", "a--b", "x.git", "Größe", "yoda,more")),
    ["train", "model", "no-such.jsonl"],
    ["train", "model", "org/no-data"],
    ["compare", "run", "org/no-data"],
    ["train", "model", "rows.jsonl", "--eval-dataset", "no-such.csv"],
    ["train", "model", "rows.jsonl", "--output-dir", "model"],
    ["train", "model", "rows.jsonl", "--chat-template", "none"],
    ["train", "model", "empty"],
    ["train", "rows.jsonl", "model"],
    *([command, name, "yoda"] for command in ("train", "plan", "preview") for name in ("@v1", "model@v1", "~nobody-of-that-name")),
    *(["chat", name] for name in ("@v1", "@", "model@v1", "~nobody-of-that-name", "Why? " * 60)),
    *(["train", "model", "rows.jsonl", flag, "a" * 300] for flag in ("--output-dir", "--chat-template", "--eval-dataset")),
    ["train", "model", "rows.jsonl", "a" * 300 + ".yaml"],
    *(["preview", "model", name] for name in ("@v1", "rows.jsonl@v1", "~nobody-of-that-name/rows.jsonl", ",", "a" * 300)),
    ["train", "yoda", "smollm2-135m"],
    ["preview", "model", "no-such.jsonl"],
    ["plan", "model", "no-such.jsonl"],
    ["demo", "no-such-folder/"],
    ["chat", "no-such-run"],
    ["chat", "runs/none"],
    ["chat", "rows.jsonl"],
    ["merge", "runs/none", "out"],
    ["merge", "run", "model"],
    ["export", "runs/none", "out.gguf"],
    ["export", "run", "taken.gguf"],
    ["export", "run", "folder/"],
    ["export", "run", "out"],
    ["serve", "runs/none"],
    ["serve", "runs/none", "--print", "vllm"],
    ["compare", "runs/none"],
    ["compare", "run", "no-such.jsonl"],
    ["compare", "run", "--html", "rows.jsonl"],
    ["resume", "runs/none"],
    ["push", "runs/none", "me/name"],
]
SCRIPT = """
import json, sys
from tunesmith.cli.main import main
for arguments in json.loads(sys.argv[1]):
    assert main(arguments) == 2, arguments
    slow = {"torch", "transformers", "datasets", "peft", "bitsandbytes"} & set(sys.modules)
    assert not slow, (arguments, slow)
"""


def test_a_mistyped_name_is_refused_before_anything_slow_is_imported(tiny_model_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model_folder, tmp_path / "model")
    (tmp_path / "taken.gguf").touch()
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    for folder in ("empty", "run"):
        (tmp_path / folder).mkdir()
    (tmp_path / "run" / "adapter_config.json").write_text("{}")
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    command = [sys.executable, "-c", SCRIPT, json.dumps(REFUSED)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    assert len(said) == len(REFUSED)
    assert all(line.startswith("error: ") for line in said)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a run that is not finished, a folder of nothing, one of a model, and a file."""
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/mine-1", "empty", "model", "adapter"):
        Path(folder).mkdir(parents=True)
    Path("runs/mine-1/run.yaml").write_text("")
    Path("model/config.json").write_text("{}")
    for file in ("file", "adapter/notes.txt", "adapter/adapter_config.json"):
        Path(file).write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mine-1", r"There is no run mine-1. There are: runs/mine-1"),
        ("runs/mine-2", r"There is no run runs/mine-2. There are: runs/mine-1"),
        ("runs/mine-1", r"not finished. Go on: tunesmith resume runs/mine-1"),
        ("empty", r"holds no adapter and no model"),
        ("model", r"holds a model and no adapter"),
        ("file", r"file is a file, not the folder of a run"),
        ("adapter/notes.txt", r"Name its folder: adapter"),
    ],
)
def test_what_is_no_adapter_is_told_for_what_it_is(here: Path, name: str, says: str) -> None:
    with pytest.raises(RunError, match=says):
        check_adapter(Path(name))


def test_a_run_is_listed_once(here: Path) -> None:
    with pytest.raises(RunError, match=r"There are: \S+/runs/mine-1$"):
        check_adapter(here / "runs" / "mine-2")


def test_what_writes_no_run_needs_no_free_folder(here: Path, tiny_model_folder: Path) -> None:
    recipe = Recipe(model_name_or_path=str(tiny_model_folder), output_dir="runs/mine-1")
    check_recipe(recipe, begins=False)
    with pytest.raises(RunError, match="is not empty"):
        check_recipe(recipe)


def test_where_no_run_is_an_example_of_one_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="such as runs/"):
        check_adapter(Path("none"))


def test_a_run_that_was_begun_can_be_gone_on_with(here: Path) -> None:
    check_run(Path("runs/mine-1"))
    for name in ("empty", "file"):
        with pytest.raises(RunError, match=r"holds no run: it has no run\.yaml"):
            check_run(Path(name))
    with pytest.raises(RunError, match="There is no run none"):
        check_run(Path("none"))


@pytest.mark.parametrize(
    ("settings", "held"),
    [
        ({"dataset_name": "rows.jsonl"}, False),
        ({"dataset_name": "rows.jsonl", "val_size": 0.1}, True),
        ({"dataset_name": "rows.jsonl", "eval_dataset": "held.jsonl"}, True),
        ({"dataset_name": "yoda"}, True),
    ],
)
def test_a_run_that_held_no_rows_out_is_told_from_its_settings(tmp_path: Path, settings: dict[str, object], held: bool) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    with nullcontext() if held else pytest.raises(RunError, match=r"held no rows out\. .*tunesmith compare"):
        check_held_out(tmp_path)


def test_data_in_the_place_of_a_model_are_told(here: Path) -> None:
    with pytest.raises(ModelError, match=r"yoda is data, .*: tunesmith train smollm2-135m yoda"):
        check_model("yoda")


def test_a_bundled_model_that_is_misspelled_is_named(here: Path) -> None:
    with pytest.raises(ModelError, match=r"no model smollm-135m \(did you mean smollm2-135m\?\)"):
        check_model("smollm-135m")
