"""Proves that a streamed run that goes on from a checkpoint, in whichever shard, ends in the adapter it would have ended in."""

import hashlib
import json
import shutil

import pytest

import tunesmith as ts
from tunesmith.data.stream import Stream


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(Stream.__init__, "__defaults__", (9, 2**27))


def _sha(run):
    return hashlib.sha256((run / "adapter_model.safetensors").read_bytes()).hexdigest()


def test_a_streamed_run_goes_on_with_the_same_bits(tmp_path, tiny_model_folder, small_shards, monkeypatch):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    rows = [{"prompt": f"The wind {n}", "completion": f"is cold {n}."} for n in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    whole = tmp_path / "whole"
    ts.train(
        str(tiny_model_folder), str(tmp_path / "rows.jsonl"), streaming=True, max_steps=12, max_length=64, val_size=3, save_steps=1,
        save_total_limit=20, per_device_train_batch_size=2, packing="none", device="cpu", output_dir=str(whole),
    )  # fmt: skip
    positions = [json.loads((path / "state.json").read_text())["position"] for path in (whole / "checkpoints").glob("checkpoint-*")]
    assert {position["shard"] for position in positions} >= {0, 1, 2}
    for kept in (6,):
        run = tmp_path / f"from-{kept}"
        shutil.copytree(whole, run)
        for path in (run / "checkpoints").glob("checkpoint-*"):
            if int(path.name.rsplit("-", 1)[1]) > kept:
                shutil.rmtree(path)
        for name in ("adapter_model.safetensors", "manifest.json"):
            (run / name).unlink()
        ts.resume(run, allow_changed=False)
        assert _sha(run) == _sha(whole)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == list(range(1, 13))
