"""Proves that a merged model is the live one: for every kind of adapter, with tied weights, and never by accident another."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import tunesmith as ts
from tunesmith import api
from tunesmith.base.adapter import attach
from tunesmith.base.catalog import resolve
from tunesmith.base.load import choose_compute, load_model
from tunesmith.errors import MachineError, RunError
from tunesmith.export import merge as merging
from tunesmith.export.adapter import save_adapter
from tunesmith.recipe import Recipe

IDS = torch.tensor([[5, 9, 11, 30, 41, 7]])


@pytest.fixture
def run(tiny_model_folder, tiny_tokenizer, tmp_path):
    """Saves an adapter of random values, with these settings; gives its folder and the live logits."""

    def save(base=tiny_model_folder, **settings):
        recipe = Recipe.of({"model_name_or_path": str(base), "device": "cpu", "dtype": "float32", **settings})
        model = attach(load_model(resolve(str(base)), recipe, choose_compute(recipe)), recipe, str(base), None)
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "magnitude" not in name:
                parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
        folder = tmp_path / "run"
        save_adapter(model, tiny_tokenizer, [2, 0], folder)
        recipe.write(folder / "run.yaml")
        return folder, model.eval()(input_ids=IDS).logits.detach()

    return save


def _logits(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(input_ids=IDS).logits.detach()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True, "lora_r": 4},
        {"use_dora": True},
        {"lora_target_modules": ["q_proj", "down_proj"]},
        {"load_in_4bit": False},
        {"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False},
    ],
    ids=str,
)
def test_plain_transformers_gives_the_live_adapters_logits(run, tmp_path, settings):
    folder, live = run(**settings)
    agreement, limit = ts.merge(folder, tmp_path / "out", "float32")
    assert agreement.kl <= limit == 1e-6
    torch.testing.assert_close(_logits(tmp_path / "out"), live, rtol=1e-4, atol=1e-4)


def test_tied_weights_stay_tied_and_are_written_once(run, tiny_model_folder, tmp_path):
    base = shutil.copytree(tiny_model_folder, tmp_path / "tied")
    weights, config = load_file(base / "model.safetensors"), json.loads((base / "config.json").read_text())
    del weights["lm_head.weight"]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    (base / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    folder, live = run(base)
    ts.merge(folder, tmp_path / "out", "float32")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118
    torch.testing.assert_close(_logits(tmp_path / "out"), live, rtol=1e-4, atol=1e-4)


def test_the_type_asked_for_is_written_and_the_answers_end_where_the_adapters_do(run, tmp_path):
    folder, _ = run()
    agreement, limit = ts.merge(folder, tmp_path / "out", "bfloat16")
    assert 0 < agreement.kl <= limit == 1e-2
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    settings = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    stops = api.load(folder).session.stop_ids
    assert settings["eos_token_id"] == stops or settings["eos_token_id"] == stops[0]
    assert tokenizer.chat_template
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_settings_of_the_base_that_transformers_would_not_save_are_kept(run, tiny_model_folder, tmp_path):
    base = shutil.copytree(tiny_model_folder, tmp_path / "base")
    (base / "generation_config.json").write_text('{"temperature": 0.9, "top_p": 0.6, "eos_token_id": 0}')
    folder, _ = run(base)
    ts.merge(folder, tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (settings["temperature"], settings["top_p"]) == (0.9, 0.6)
    assert settings["eos_token_id"] == api.load(folder).session.stop_ids


def test_large_models_are_written_in_several_files(run, tmp_path, monkeypatch):
    folder, live = run()
    monkeypatch.setattr(merging, "SHARD_BYTES", 60_000)
    ts.merge(folder, tmp_path / "out", "float32")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    torch.testing.assert_close(_logits(tmp_path / "out"), live, rtol=1e-4, atol=1e-4)


def test_a_merged_model_that_answers_otherwise_is_not_kept(run, tmp_path, monkeypatch):
    folder, _ = run()
    right = merging._merged
    monkeypatch.setattr(merging, "_merged", lambda module, name: 1.05 * right(module, name))
    with pytest.raises(RunError, match="diverges from the live adapter"):
        ts.merge(folder, tmp_path / "out", "float32")
    assert [path.name for path in tmp_path.iterdir() if path.name != "run"] == []


def test_files_that_are_there_are_left_alone(run, tmp_path):
    folder, _ = run()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="is not empty"):
        ts.merge(folder, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_full_disk_is_found_before_anything_is_written(run, tmp_path, monkeypatch):
    folder, _ = run()
    usage = merging.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(merging.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(MachineError, match="GB free"):
        ts.merge(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
