"""A run in unfriendly surroundings: no locale, a strict umask, spaces and letters of many scripts in paths, no home to write to."""

import os
import shutil
import subprocess
import sys

import pytest


@pytest.fixture
def command(tmp_path):
    """The command as a service would start it: with hardly any environment, and the umask 077."""

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "tunesmith.cli.main", *map(str, arguments)], capture_output=True, encoding="utf-8", umask=0o077,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C", "LANG": "C", "HOME": "/proc/nobody", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    return run


def test_train_merge_and_export_need_no_locale_no_home_and_no_plain_paths(command, tiny_model_folder, rows, tmp_path):
    model, data, run = tmp_path / "ünï 模型 'x'", tmp_path / "dätä [1]" / "rows $1.jsonl", tmp_path / "läuf 1"
    shutil.copytree(tiny_model_folder, model)
    data.parent.mkdir()
    shutil.copy(rows, data)
    for arguments in (
        ("train", model, data, "--output-dir", run, "--max-steps", "2", "--val-size", "2"),
        ("merge", run, tmp_path / "zusammen gefügt", "--dtype", "float32"),
        ("export", run, tmp_path / "für llama ☃.gguf", "--type", "adapter"),
    ):
        done = command(*arguments)
        assert done.returncode == 0, done.stderr + done.stdout
        assert "Traceback" not in done.stderr
    assert (run / "manifest.json").is_file()
    assert (tmp_path / "zusammen gefügt" / "model.safetensors").is_file()
    assert (tmp_path / "für llama ☃.gguf").read_bytes().startswith(b"GGUF")


def test_a_gguf_base_without_a_home_says_where_to_point_the_cache(command, rows, tmp_path):
    done = command("train", "smollm2-135m", rows, "--output-dir", tmp_path / "run", "--max-steps", "1")
    assert done.returncode == 2
    assert "/proc/nobody" in done.stderr
    assert "Point TUNESMITH_CACHE at a folder that can." in done.stderr
