"""The planner on a GPU: predicted against measured peak of training, for three model shapes, several lengths and ways to run.

    python benchmarks/planner.py [--folder FOLDER] [--out benchmarks/results]

Models have the exact shapes of well-known ones and random weights, made here. Each setting trains four updates (three layouts
of kernels are compiled, the update is captured) and reads torch's own peak of allocated memory, counted from when the model
stands ready. Bar: within 5 %, and the prediction is never below.
"""

import argparse
import datetime
import gc
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]  # also where tunesmith is not installed
SHAPES: dict[str, dict[str, Any]] = {
    "phi3-mini": {
        "model_type": "phi3", "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096, "pad_token_id": 32000, "bos_token_id": 1, "eos_token_id": 32000,
    },
    "qwen2.5-1.5b": {
        "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2, "max_position_embeddings": 32768, "tie_word_embeddings": True,
    },
    "llama3.2-1b": {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
}  # fmt: skip
KEPT, FLY = {"dequantize": "always", "gradient_checkpointing": False}, {"dequantize": "never", "gradient_checkpointing": False}
LEAN = {"dequantize": "never", "gradient_checkpointing": True}
SETTINGS: list[tuple[str, int, int, dict[str, Any]]] = [  # shape, length, rows a micro-batch, way
    ("phi3-mini", 64, 16, KEPT),
    ("phi3-mini", 64, 16, FLY),
    ("phi3-mini", 512, 4, LEAN),
    ("phi3-mini", 64, 16, {**LEAN, "activation_offloading": True, "offload_base": "always"}),
    ("qwen2.5-1.5b", 512, 8, KEPT),
    ("qwen2.5-1.5b", 2048, 2, {**LEAN, "activation_offloading": True}),
    ("llama3.2-1b", 1024, 4, FLY),
    ("llama3.2-1b", 1024, 8, LEAN),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "shapes")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    rows = [measure(options.folder, *setting) for setting in SETTINGS]
    report(rows, options.out)


def measure(folder: Path, name: str, length: int, batch: int, way: dict[str, Any]) -> dict[str, Any]:
    """Predicted and measured peak of one setting."""
    from benchmarks.token_job import token_job

    from tunesmith.data.render import Example
    from tunesmith.job import load_job
    from tunesmith.recipe import Recipe
    from tunesmith.training.loop import train

    recipe = Recipe.of({
        "model_name_or_path": str(_made(folder / name, SHAPES[name])), "dataset_name": "random", "max_length": length,
        "packing": "wrapped", "cache_base": False,
        "max_steps": 4, "per_device_train_batch_size": batch, "learning_rate": 1e-4, "shuffle": False,
        "activation_offloading": False, "offload_base": "never", **way,
    })  # fmt: skip
    draw = random.Random(0)
    ids = [[draw.randrange(10, 32000) for _ in range(length)] for _ in range(4 * batch)]
    job = token_job(recipe, [[Example(row, list(row), "random")] for row in ids])
    predicted = job.plan.chosen
    assert predicted.way.split == 1
    gc.collect()
    torch.cuda.empty_cache()
    torch._C._cuda_clearCublasWorkspaces()  # those of the setting before; a fresh process has none
    left = torch.cuda.memory_allocated()
    model, loss_of, loaded = load_job(job)
    torch.cuda.reset_peak_memory_stats()
    reports = list(train(model, loss_of, job.loader, job.recipe, 1e-4))
    measured = torch.cuda.max_memory_allocated()
    del model, loss_of
    error = predicted.bytes / measured - 1
    print(
        f"{name} {length}×{batch} {predicted.way}: {predicted.bytes / 1e9:.3f} GB for {measured / 1e9:.3f} ({error:+.1%})",
        flush=True,
    )
    return {
        "shape": name, "length": length, "rows": batch, "way": str(predicted.way), "path": loaded.path,
        "linears": loaded.linears, "predicted": predicted.bytes,
        "parts": vars(predicted.memory), "measured": measured, "left_from_before": left, "error": round(error, 4),
        "ms_per_step": round(1e3 * reports[-1].seconds, 1),
    }  # fmt: skip


def _made(folder: Path, config: dict[str, Any]) -> Path:
    """The folder of a model of this shape, made with random weights if it is not there."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if not (folder / "config.json").exists():
        settings = dict(config)
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("cuda"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
        model.save_pretrained(folder, max_shard_size="4GB")
        torch.set_default_dtype(torch.float32)
        del model
        torch.cuda.empty_cache()
    return folder


def report(rows: list[dict[str, Any]], out: Path) -> None:
    """Print the table and write the dated result file."""
    from importlib.metadata import version

    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Predicted and measured peak, {torch.cuda.get_device_name()}")
    for column in ("shape", "length × rows", "way", "predicted GB", "measured GB", "error"):
        table.add_column(column)
    for row in rows:
        table.add_row(
            row["shape"], f"{row['length']} × {row['rows']}", row["way"], f"{row['predicted'] / 1e9:.3f}",
            f"{row['measured'] / 1e9:.3f}", f"{row['error']:+.1%}",
        )  # fmt: skip
    Console(width=150).print(table)
    record = {
        "date": datetime.date.today().isoformat(),
        "command": "python benchmarks/planner.py",
        "device": torch.cuda.get_device_name(),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes", "triton")},
        "settings": rows,
    }
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{record['date']}-planner.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"written to {path.name}")


if __name__ == "__main__":
    sys.exit(main())
