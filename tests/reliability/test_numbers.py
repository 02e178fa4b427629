"""Numbers that are not finite stop a run before they do harm; runs that must agree do so, through the command too."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import tunesmith as ts
from tunesmith.cli.main import main
from tunesmith.errors import TrainingError


def saved(folder):
    """The updates of all checkpoints, every one of them finite."""
    found = {}
    for path in (folder / "checkpoints").glob("checkpoint-*"):
        tensors = [*load_file(path / "adapter.safetensors").values(), *load_file(path / "optimizer.safetensors").values()]
        assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
        found[int(path.name.partition("-")[2])] = path
    return sorted(found)


# ---- not finite


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_in_a_gradient_it_stops_before_the_update_and_the_run_can_go_on(lab, whole, tmp_path, value):
    folder = tmp_path / "run"
    failed = lab.train(folder, {"gradient": 5, "poison": value}, save_steps=1)
    assert failed["code"] == 2
    assert "The gradient became " in failed["error"]
    assert "at update 5; the adapter was not updated with it" in failed["error"]
    kept = folder / "checkpoints" / "checkpoint-4"
    assert failed["notes"][-1] == f"{kept} holds the newest good state; nothing after it was saved"
    assert saved(folder) == [3, 4]
    assert not (folder / "adapter_model.safetensors").exists()
    assert lab.resume(folder)["code"] == 0
    lab.assert_as_undisturbed(folder, whole)


@pytest.mark.parametrize(("value", "every", "says"), [
    ("nan", 1, "is not finite after update 5; it was not saved"),
    ("inf", 1, "is not finite after update 5; it was not saved"),
    ("nan", 100, "The loss became nan at update 6 (rows: "),
])  # fmt: skip
def test_in_a_weight_it_is_never_saved(lab, whole, tmp_path, value, every, says):
    folder = tmp_path / "run"
    failed = lab.train(folder, {"weight": 5, "poison": value}, save_steps=every)
    assert failed["code"] == 2
    assert says in failed["error"]
    assert saved(folder) == ([3, 4] if every == 1 else [0])
    assert not (folder / "adapter_model.safetensors").exists()
    assert lab.resume(folder)["code"] == 0
    lab.assert_as_undisturbed(folder, whole)


def test_a_rate_that_ruins_the_model_ends_the_run_with_an_error(rows, tmp_path):
    """The real model: it then gives every token the same probability, and all its numbers are finite."""
    settings = {"learning_rate": 1e6, "max_steps": 8, "per_device_train_batch_size": 2, "val_size": 0, "save_steps": 2}
    with pytest.raises(TrainingError, match=r"diverged: the loss was [0-9.]+ at first and is 10\.8 at update"):
        ts.train("smollm2-135m", str(rows), output_dir=str(tmp_path / "run"), **settings)
    assert not (tmp_path / "run" / "adapter_model.safetensors").exists()


def test_in_a_batch_the_command_names_update_and_row_and_fails(tiny_model_folder, rows, tmp_path, capsys):
    """The embedding of one character is not a number, and one row has that character."""
    model, data, folder = shutil.copytree(tiny_model_folder, tmp_path / "model"), tmp_path / "rows.jsonl", tmp_path / "run"
    number = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]["Q"]
    weights = load_file(model / "model.safetensors")
    weights["model.embed_tokens.weight"][number] = float("nan")
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    lines = rows.read_text().splitlines()
    lines[16] = json.dumps({"prompt": "Q?", "completion": "the wind is cold"})
    data.write_text("\n".join(lines))
    arguments = ["--packing", "none", "--per-device-train-batch-size", "1", "--output-dir", str(folder), "--save-steps", "1"]
    assert main(["train", str(model), str(data), *arguments]) == 2
    out, error = capsys.readouterr()
    assert "The loss became nan at update " in error
    assert "rows.jsonl, line 17" in error or "rows.jsonl line 17" in error, error
    step = int(error.partition("at update ")[2].split()[0])
    assert max(saved(folder)) == step - 1
    assert "holds the newest good state" in " ".join(out.split())
    assert not (folder / "adapter_model.safetensors").exists()


# ---- runs that must agree


def test_how_often_it_is_evaluated_does_not_change_one_bit_of_the_adapter(lab, whole, tmp_path):
    for every in (1, 1000):
        assert lab.train(tmp_path / str(every), eval_steps=every)["code"] == 0
        assert lab.sha256(tmp_path / str(every)) == lab.sha256(whole)


SAME = {
    "2 × 4 rows": ["--per-device-train-batch-size", "2", "--gradient-accumulation-steps", "4"],
    "1 × 8 rows": ["--per-device-train-batch-size", "1", "--gradient-accumulation-steps", "8"],
    "recomputed": ["--gradient-checkpointing", "true"],
    "dequantised at each use": ["--dequantize", "never"],
    "prefixes not shared": ["--no-shared-prefix"],
}


def test_the_commands_runs_differ_only_in_their_rounding(tiny_model_folder, rows, tmp_path):
    """Of all updates the largest difference of losses, and their mean, which would show a bias: one rounding of such a loss is
    4.8e-7, and a dozen of them in either direction stay below."""

    def losses(name, arguments):
        common = ["--learning-rate", "3e-3", "--lora-dropout", "0", "--per-device-train-batch-size", "8", "--num-train-epochs", "3",
                  "--val-size", "0", "--max-length", "64", "--output-dir", str(tmp_path / name)]  # fmt: skip
        assert main(["train", str(tiny_model_folder), str(rows), *common, *arguments]) == 0
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return torch.tensor([json.loads(line)["loss"] for line in lines], dtype=torch.float64)

    plain = losses("plain", [])
    assert len(plain) >= 6
    for name, arguments in SAME.items():
        residual = losses(name, arguments) - plain
        assert float(residual.abs().max()) <= 1e-6, name
        assert abs(float(residual.mean())) <= 3e-7, name


# ---- labels


def test_the_loss_is_that_of_the_next_token_and_of_no_other():
    """A model that follows every token by the next number knows a row that counts, and not one that counts by twos."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from tunesmith.data.example import Example
    from tunesmith.data.packing import make_pack
    from tunesmith.training.step import choose_loss

    config = LlamaConfig(vocab_size=40, hidden_size=40, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        layer = model.model.layers[0]
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(40))
        model.lm_head.weight.copy_(20 * torch.eye(40).roll(1, 0))
    loss_of, path = choose_loss(model)
    assert path.startswith("flat segments")

    @torch.no_grad()
    def mean_loss(*rows):
        pack = make_pack([[Example([*ids], [-100, *ids[1:]], "a row")] for ids in rows])
        return float(loss_of(pack)) / len(pack.targets)

    assert mean_loss(range(5, 20), range(20, 38)) < 1e-4
    assert mean_loss(range(5, 35, 2)) > 5


def test_four_bits_lose_what_bitsandbytes_has_always_lost():
    """Mean error over a million normal numbers, as bitsandbytes' own tests have it for blocks of 64: within seven standard
    deviations of their 200 samples."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    torch.manual_seed(0)
    numbers = torch.randn(1024, 1024)
    packed, state = quantize_4bit(numbers, blocksize=64, quant_type="nf4")
    error = (numbers - dequantize_4bit(packed, state)).abs()
    assert abs(float(error.mean()) - 0.072798) <= 7 * 0.000074
    assert abs(float((error / (numbers.abs() + 1e-8)).mean()) - 0.203339) <= 7 * 0.00034
