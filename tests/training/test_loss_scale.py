"""Proves that fp16 learns what fp32 learns, that its loss scale finds its way, and that a base beyond its range is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.training.updates import run

import tunesmith as ts
from tunesmith.errors import ModelError, TrainingError
from tunesmith.training.loss_scale import GROWTH, LEAST, MOST, START, LossScale
from tunesmith.training.update import EagerUpdate

FP16 = {"way": EagerUpdate, "dtype": "float16", "lora_dropout": 0.0}


def scaled_by(factor):
    class Scaled(EagerUpdate):
        def __init__(self, *settings):
            super().__init__(*settings)
            self.scale.value *= factor

    return {**FP16, "way": Scaled}


def test_fp16_makes_nearly_the_updates_of_fp32(tiny_model_folder):
    half, whole = run(tiny_model_folder, **FP16), run(tiny_model_folder, **{**FP16, "dtype": "float32"})
    torch.testing.assert_close(half[0][:, 0], whole[0][:, 0], rtol=5e-3, atol=5e-3)
    assert half[1].dtype == torch.float32


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_gradient_beyond_the_range_is_made_again_with_half_the_scale_and_the_same_dropout(tiny_model_folder, dropout):
    same = {"lora_dropout": dropout}
    loud, plain = run(tiny_model_folder, **scaled_by(2.0**20) | same), run(tiny_model_folder, **FP16 | same)
    torch.testing.assert_close(loud[0], plain[0], rtol=5e-3, atol=5e-3)


def test_a_gradient_that_is_never_finite_stops_the_run(tiny_model_folder):
    class Broken(EagerUpdate):
        def begin(self, packs, step):
            super().begin(packs, step)
            next(iter(self.parameters.values())).grad.fill_(float("inf"))

    with pytest.raises(TrainingError, match="at update 1"):
        run(tiny_model_folder, **{**FP16, "way": Broken})


def test_the_scale_grows_after_good_updates_and_goes_on_where_it_was():
    scale = LossScale(torch.float16)
    for _ in range(GROWTH + 7):
        scale.made()
    assert (scale.value, scale.updates) == (2 * START, 7)
    resumed = LossScale(torch.float16)
    assert resumed.take({"0.step": 3.0, **scale.counts()}) == {"0.step": 3.0}
    assert (resumed.value, resumed.updates) == (scale.value, scale.updates)
    for _ in range(20 * GROWTH):
        scale.made()
    assert scale.value == MOST
    halvings = 0
    while scale.halve():
        halvings += 1
    assert scale.value == LEAST
    assert halvings == 20


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_other_types_have_no_scale(compute):
    scale = LossScale(compute)
    assert not scale.halve()
    scale.made()
    assert scale.value == 1.0
    assert scale.counts() == {}


def test_a_base_whose_activations_leave_the_range_is_refused_with_the_place(tiny_model_folder, tmp_path):
    folder = shutil.copytree(tiny_model_folder, tmp_path / "loud")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] *= 1e6
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{n} and one", "completion": f"{n + 1}."}) + "\n" for n in range(12)))
    with pytest.raises(ModelError, match=r"fp16: model\.layers\.1\..*65504"):
        ts.train(str(folder), str(data), dtype="float16", max_steps=1, output_dir=str(tmp_path / "run"))


def test_a_run_in_fp16_learns_and_answers(tiny_model_folder, tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{n} and one", "completion": f"{n + 1}."}) + "\n" for n in range(12)))
    settings = {"learning_rate": 1e-2, "max_steps": 12, "per_device_train_batch_size": 6, "val_size": 0}
    tuned = ts.train(str(tiny_model_folder), str(data), dtype="float16", output_dir=str(tmp_path / "run"), **settings)
    losses = [
        row["loss"] for row in map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) if "loss" in row
    ]
    assert losses[-1] < 0.8 * losses[0]
    assert isinstance(tuned.generate("3 and one", max_new_tokens=4), str)
