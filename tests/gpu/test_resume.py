"""Proves on a GPU that a run that crashed goes on to the very adapter it would have had, and that memory that runs out costs time
and no update."""

import hashlib
import json
import shutil

import pytest
import torch

import tunesmith as ts

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class CrashError(Exception):
    """Comes where a run may end at any time."""


@pytest.fixture
def data(tmp_path):
    """Rows of many lengths that begin alike."""
    path = tmp_path / "rows.jsonl"
    pairs = [(a, b) for a in ("wind", "camp", "table", "night") for b in ("cold", "kind", "old", "bold")]
    rows = [{"prompt": f"the {a} is {b} " * (1 + n % 5), "completion": f"{b}, the {a} is"} for n, (a, b) in enumerate(pairs * 3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def long_data(tmp_path):
    """Rows of 40 to 120 tokens, shorter and longer than a block of attention and than what is rotated inside it."""
    path = tmp_path / "long.jsonl"
    rows = [{"prompt": "the wind is cold " * (5 + 3 * n % 13), "completion": f"so {n} is it " * (1 + n % 5)} for n in range(64)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sha256(run):
    return hashlib.sha256((run.folder / "adapter_model.safetensors").read_bytes()).hexdigest()


def crash_at(step):
    def watch(event):
        if getattr(event, "step", None) == step and hasattr(event, "loss"):
            raise CrashError

    return watch


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"packing": "wrapped", "max_length": 48},
        {"packing": "none", "shared_prefix": False, "gradient_accumulation_steps": 2},
        {"optim": "adamw_8bit"},
        {"optim": "paged_adamw_8bit", "dequantize": "never"},
        {"gradient_checkpointing": True, "activation_offloading": True, "offload_base": "always", "dequantize": "never"},
        {"dtype": "float16"},
    ],
    ids=lambda settings: ", ".join(map(str, settings.values())) or "as it comes",
)
def test_a_run_that_crashed_ends_in_the_very_same_adapter(tiny_model_folder, data, tmp_path, settings):
    _crashes_and_goes_on(tiny_model_folder, data, tmp_path, settings)


@pytest.mark.parametrize("settings", [{}, {"shared_prefix": False}, {"packing": "none"}], ids=str)
def test_so_does_one_whose_documents_are_longer_than_a_block_of_attention(tiny_model_folder, long_data, tmp_path, settings):
    _crashes_and_goes_on(tiny_model_folder, long_data, tmp_path, settings)


def _crashes_and_goes_on(tiny_model_folder, data, tmp_path, settings):
    common = {"learning_rate": 1e-2, "lora_dropout": 0.1, "max_steps": 14, "per_device_train_batch_size": 4, "save_steps": 3}
    asked = {**common, **settings}
    whole = ts.train(str(tiny_model_folder), str(data), output_dir=str(tmp_path / "whole"), **asked)
    folder = tmp_path / "run"
    with pytest.raises(CrashError):
        ts.train(str(tiny_model_folder), str(data), output_dir=str(folder), watch=crash_at(5), **asked)
    with pytest.raises(CrashError):
        ts.resume(folder, watch=crash_at(11))
    resumed = ts.resume(folder)
    assert [m["loss"] for m in resumed.metrics] == [m["loss"] for m in whole.metrics]
    assert sha256(resumed) == sha256(whole)


def test_memory_that_runs_out_costs_time_and_no_update(tiny_model_folder, tmp_path):
    """The card is made too small for the way that was chosen, and large enough for one that recomputes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = shutil.copytree(tiny_model_folder, tmp_path / "model")
    wider = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8}
    LlamaForCausalLM(LlamaConfig.from_pretrained(model, **wider)).save_pretrained(model)
    data = tmp_path / "long.jsonl"
    rows = [{"prompt": "the wind is cold " * 9, "completion": f"so {n} is it " * 9} for n in range(96)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {"max_steps": 4, "per_device_train_batch_size": 48, "packing": "none", "val_size": 0, "lora_dropout": 0.0}

    def peak(name, **settings):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        notes = []
        run = ts.train(str(model), str(data), output_dir=str(tmp_path / name), watch=notes.append, **common, **settings)
        return [m["loss"] for m in run.metrics], torch.cuda.max_memory_reserved(), " ".join(map(str, notes))

    kept, much, _ = peak("kept", gradient_checkpointing=False)
    recomputed, little, _ = peak("recomputed", gradient_checkpointing=True, activation_offloading=False)
    assert little < 0.8 * much
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((little + 0.3 * (much - little)) / total)
    try:
        losses, _, notes = peak("small")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "memory ran out" in notes.lower()
    assert losses == pytest.approx(kept, rel=2e-2)
    assert losses == pytest.approx(recomputed, rel=2e-2)
