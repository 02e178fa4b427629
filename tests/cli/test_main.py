"""Proves that the command finds its subcommands, keeps its exit codes, and does the whole job on a tiny model."""

import json
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import tunesmith
from tunesmith.cli.main import COMMANDS, main
from tunesmith.errors import RecipeError


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    lines = [{"prompt": f"The wind {n} is cold.", "completion": f"Cold, the wind {n} is."} for n in range(12)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


# ---- the command itself


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_a_module_with_run_and_a_docstring_that_shows_it(command: str) -> None:
    module = import_module(f"tunesmith.cli.{command}")
    assert callable(module.run)
    assert f"tunesmith {command}" in (module.__doc__ or "")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"usage: tunesmith {command}" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]], ids=["none", "--help", "-h"])
def test_help_names_every_command_with_its_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: Any = main(arguments)
    except SystemExit as stop:
        code = stop.code
    assert code == 0
    words = " ".join(capsys.readouterr().out.split())
    for command, line in COMMANDS.items():
        assert f"{command} {line}" in words


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.strip() == f"tunesmith {tunesmith.__version__}"


def test_an_unknown_flag_of_the_command_itself_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--verson"]) == 2
    assert "--verson" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["push", "merge", "export", "serve", "resume"])
def test_arguments_that_are_missing_are_one_paragraph_with_the_next_command(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: tunesmith {command}: ")
    assert said.endswith(f"Try `tunesmith {command} --help`.\n")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["chat"], ["resume"], ["serve"], ["compare"], ["merge", "out"], ["push", "me/x"]], ids=" ".join
)
def test_an_empty_name_is_not_the_folder_one_is_in(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command, *rest = arguments
    assert main([command, "", *rest]) == 2
    assert f"tunesmith {command}: argument R" in capsys.readouterr().err


def test_debug_raises_what_is_otherwise_a_paragraph(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises(RecipeError):
        main(["trian", "--debug"])


def test_an_interruption_is_exit_code_130(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("tunesmith.cli.chat_model.find_partner", interrupted)
    assert main(["chat", str(tmp_path)]) == 130
    assert "Stopped" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_output_that_a_full_disk_does_not_take_is_one_paragraph() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tunesmith.cli.main"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2
    assert done.stderr.startswith("error: The output could not be written: No space left on device. Free some space")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")])
def test_memory_that_runs_out_is_one_paragraph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def full(*arguments: Any) -> str:
        raise error

    monkeypatch.setattr("tunesmith.cli.chat_model.find_partner", full)
    assert main(["chat", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: The memory of this machine ran out.")


# ---- the whole job


def test_doctor_says_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for word in ("python", "torch", "bitsandbytes", "memory free", "GFLOP/s", "float32 on cpu", "ready"):
        assert word in out


def test_plan_shows_the_plan_loads_no_weight_and_leaves_nothing(
    tiny_model_folder: Path, rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = shutil.copytree(tiny_model_folder, tmp_path / "model")
    (model / "model.safetensors").write_bytes(b"no weights at all")
    before = sorted(tmp_path.rglob("*"))
    assert main(["plan", "model", rows, "--num-train-epochs", "2", "--micro-batch-size", "4", "--output-dir", "model"]) == 0
    out = capsys.readouterr().out
    assert "micro-batch-size → per_device_train_batch_size: 4" in out
    for word in ("12 rows to train on", "'prompt' → 'completion'", "updates of 4 rows", "NF4", "GB predicted", "bytes as loaded"):
        assert word in out
    ways = out[out.index("Ways to run it") :]
    assert "→  weights kept" in ways
    assert "weights kept: the 4-bit weights are kept unpacked, too" in ways
    for jargon in ("0:0", "× 1"):
        assert jargon not in out
    assert sorted(tmp_path.rglob("*")) == before


def test_plan_and_preview_need_no_weights_and_training_says_that_it_does(
    tiny_model_folder: Path, rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model_folder, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    assert main(["plan", "model", rows]) == 0
    assert main(["preview", "model", rows]) == 0
    assert "GB predicted" in capsys.readouterr().out
    assert main(["train", "model", rows]) == 2
    assert "model has no .safetensors weights" in capsys.readouterr().err


def test_a_plan_in_which_nothing_fits_ends_with_one(
    tiny_model_folder: Path, rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", str(tiny_model_folder), rows, "--memory", "10MB"]) == 1
    assert "nothing is sure to fit" in " ".join(capsys.readouterr().out.split())


def test_a_gpu_that_is_elsewhere_can_be_planned_for_but_its_memory_must_be_told(
    tiny_model_folder: Path, rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    arguments = ["plan", str(tiny_model_folder), rows, "--device", "cuda"]
    assert main([*arguments, "--memory", "24GB"]) == 0
    out = capsys.readouterr().out
    for word in ("a GPU that is not here", "not known: it is measured on the GPU", "going by its arithmetic", "–  yes"):
        assert word in out
    assert main(arguments) == 2
    assert "--memory 24GB" in capsys.readouterr().err
    assert main(["train", *arguments[1:], "--memory", "24GB"]) == 2
    assert "PyTorch sees no GPU here" in capsys.readouterr().err


def test_train_leaves_a_whole_run_and_chat_opens_it(
    tiny_model_folder: Path, rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["train", str(tiny_model_folder), rows, "--max-steps", "2", "--val-size", "2", "--output-dir", "out"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "Done. The adapter is in out" in printed.out
    assert "update 2/2" in printed.out
    beside = {"run.yaml", "metrics.jsonl", "report.html", "README.md", "manifest.json"}
    assert {path.name for path in Path("out").iterdir()} >= {"adapter_config.json", "adapter_model.safetensors", *beside}
    assert [json.loads(line)["step"] for line in Path("out/metrics.jsonl").read_text().splitlines()] == [1, 2]

    assert main(["chat", "out", "--prompt", "The wind is cold.", "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out.endswith("\n")

    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    assert main(arguments) == 2
    assert "out is not empty" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == before
