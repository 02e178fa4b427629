"""A lab for accidents, and a run that nothing disturbed to compare with."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROWS = [
    {"prompt": f"the {thing} is {how} " * (1 + (n % 3)), "completion": f"{how}, the {thing} is"}
    for n, (thing, how) in enumerate(
        (t, h) for t in ("wind", "camp", "bridge", "table", "night") for h in ("cold", "dark", "kind", "bold", "far", "old")
    )
]


class Lab:
    """Runs that come to grief, each in a process of its own; see lab.py."""

    def __init__(self, settings, cache):
        self.settings = settings
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(Path(__file__).parent / "lab.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "TUNESMITH_CACHE": str(cache)},
        )  # fmt: skip

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def train(self, folder, crash=None, **settings):
        return self.ask(call="train", settings={**self.settings, "output_dir": str(folder), **settings}, crash=crash or {})

    def resume(self, folder, crash=None, **settings):
        return self.ask(call="resume", run=str(folder), settings=settings, crash=crash or {})

    @staticmethod
    def sha256(folder):
        return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()

    @staticmethod
    def updates(folder):
        """The records of metrics.jsonl without their times."""
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in record.items() if k != "seconds"} for record in records]

    @classmethod
    def assert_as_undisturbed(cls, folder, whole):
        assert cls.sha256(folder) == cls.sha256(whole)
        assert cls.updates(folder) == cls.updates(whole)
        lines, expected = ((place / "README.md").read_text().splitlines() for place in (folder, whole))
        timed = ("| time |", "| peak memory |", "# ")
        assert [line for line in lines if not line.startswith(timed)] == [line for line in expected if not line.startswith(timed)]
        assert "Before and after" in (folder / "report.html").read_text()
        total = len(cls.updates(whole))
        assert json.loads((folder / "manifest.json").read_text())["updates"] == {"done": total, "of": total}
        assert not list(folder.rglob(".tmp*"))


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture(scope="session")
def lab(tiny_model_folder, rows, tmp_path_factory):
    """Dropout, shuffling, packing, shared prefixes, two micro-batches a window, evaluations, and a checkpoint every two
    updates."""
    made = Lab({
        "model": str(tiny_model_folder), "data": str(rows), "num_train_epochs": 2, "learning_rate": 1e-2, "lora_dropout": 0.1,
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": 3, "val_size": 3, "eval_steps": 3, "save_steps": 2,
        "max_length": 96, "lora_target_modules": "q_proj,v_proj,down_proj",
    }, tmp_path_factory.mktemp("cache"))  # fmt: skip
    yield made
    made.process.stdin.close()
    made.process.wait(timeout=60)
    made.process.stdout.close()


@pytest.fixture(scope="session")
def whole(lab, tmp_path_factory):
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert lab.train(folder)["code"] == 0
    return folder
