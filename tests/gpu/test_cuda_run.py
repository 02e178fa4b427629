"""The main job on a GPU: the same losses as on a CPU in fp32, and 4-bit bf16 training with the 8-bit optimizers."""

import json

import pytest
import torch

import tunesmith as ts

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "rows.jsonl"
    pairs = [(a, b) for a in ("wind", "camp", "table") for b in ("cold", "kind")]
    rows = [{"prompt": f"the {a} is {b}", "completion": f"{b}, the {a} is"} for a, b in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows * 3))
    return path


def test_fp32_losses_equal_the_cpus(tiny_model_folder, data, tmp_path):
    losses = {}
    for device in ("cpu", "cuda"):
        run = ts.train(
            str(tiny_model_folder), str(data), device=device, dtype="float32", load_in_4bit=False, lora_dropout=0,
            learning_rate=3e-3, max_steps=6,
            per_device_train_batch_size=6, output_dir=str(tmp_path / device),
        )  # fmt: skip
        losses[device] = [m["loss"] for m in run.metrics]
    assert losses["cuda"] == pytest.approx(losses["cpu"], abs=1e-4)


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_8bit", "paged_adamw_8bit"])
@pytest.mark.parametrize("dequantize", ["always", "never"])
def test_4bit_bf16_training_learns_and_answers(tiny_model_folder, data, tmp_path, optim, dequantize):
    run = ts.train(
        str(tiny_model_folder), str(data), optim=optim, dequantize=dequantize, learning_rate=1e-2, max_steps=12,
        per_device_train_batch_size=6, output_dir=str(tmp_path / "run"),
    )  # fmt: skip
    assert run.metrics[-1]["loss"] < 0.8 * run.metrics[0]["loss"]
    assert ts.load(run.folder).generate("the wind is cold") == run.generate("the wind is cold")
