"""The reference job on a CPU: tunesmith against trl + peft + bitsandbytes, on the bundled model and data.

    python benchmarks/cpu_recipe.py [--rows 720] [--out benchmarks/results]

Each contender trains one epoch of the same rows in a process of its own; tunesmith's defaults run before and after the
reference, so that a drift of the machine's speed shows. Three comparisons:

    like for like   wrapped packing, every token trained, the same packed rows in the same order, dropout 0.05
    the job         tunesmith's defaults against the recipe as written
    against best    tunesmith's defaults against trl without quantisation and checkpointing

Held-out loss: mean over the answer tokens of the 80 held-out rows, by transformers' own forward, for all alike.
"""

import argparse
import datetime
import hashlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

CONTENDERS = ("tunesmith", "tunesmith like for like", "trl as written", "trl best")
COMPARISONS = (
    ("like for like", "tunesmith like for like", "trl as written", 3.5),
    ("the job", "tunesmith", "trl as written", 8.0),
    ("against best", "tunesmith", "trl best", 4.0),
)
REFERENCE = {
    "packing": "wrapped", "max_length": 64, "assistant_only_loss": False, "learning_rate": 3e-4, "shuffle": False,
    "per_device_train_batch_size": 16, "lora_dropout": 0.05, "shared_prefix": False,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=720, help="training rows; the reference job has 720")
    parser.add_argument("--max-steps", type=int, default=-1, help="stop early, to try the script out")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--contender", choices=CONTENDERS, help="run this one only and print its record")
    options = parser.parse_args()
    if options.contender:
        run = tunesmith if options.contender.startswith("tunesmith") else trl
        print("RESULT", json.dumps(run(options.contender, options.rows, options.max_steps)))
        return
    order = [*CONTENDERS, CONTENDERS[0]]
    runs: dict[str, list[dict]] = {name: [] for name in CONTENDERS}
    for name in order:
        print(f"… {name}", flush=True)
        runs[name].append(_in_process(name, options.rows, options.max_steps))
        print(f"  {runs[name][-1]['seconds_per_epoch']:.1f} s an epoch", flush=True)
    rows = runs["tunesmith like for like"][0]["packed_sha256"], runs["trl as written"][0]["packed_sha256"]
    assert rows[0] == rows[1], "the like-for-like rows differ"
    report(runs, options)


def _in_process(name: str, rows: int, max_steps: int) -> dict:
    command = [sys.executable, __file__, "--contender", name, "--rows", str(rows), "--max-steps", str(max_steps)]
    output = subprocess.run(command, capture_output=True, text=True, check=False)
    for line in output.stdout.splitlines():
        if line.startswith("RESULT "):
            return json.loads(line.removeprefix("RESULT "))
    sys.exit(f"{name} failed:\n{output.stderr[-4000:]}")


def tunesmith(name: str, rows: int, max_steps: int) -> dict:
    """One epoch with tunesmith's defaults, or with the reference's rows, labels and settings."""
    from tunesmith.base.adapter import attach
    from tunesmith.base.lean import speed_up
    from tunesmith.base.load import load_model
    from tunesmith.job import prepare_run
    from tunesmith.recipe import Recipe
    from tunesmith.training.loop import train
    from tunesmith.training.step import choose_loss

    settings = {"num_train_epochs": 1, "max_rows": rows, "max_steps": max_steps}
    recipe = Recipe.of({**settings, **(REFERENCE if name.endswith("like for like") else {})})
    job, renderer = prepare_run(recipe)
    base = load_model(job.source, job.recipe, job.compute)
    model = attach(base, job.recipe, job.source.base, None)
    speed_up(model, job.compute.dtype, job.plan.keep)
    loss_of, _ = choose_loss(base)
    start = time.perf_counter()
    reports = list(train(model, loss_of, job.loader, job.recipe, job.recipe.learning_rate))
    seconds = time.perf_counter() - start
    return {
        **_measured(seconds, len(reports), job.loader.updates_per_epoch),
        "losses": [round(r.loss, 4) for r in reports],
        "packed_sha256": _digest([example.input_ids for row in job.data.rows for example in row]),
        "held_out_loss": _held_out_loss(base, renderer.tokenizer),
    }


def trl(name: str, rows: int, max_steps: int) -> dict:
    """One epoch of the reference recipe on trl, as written or without quantisation and checkpointing."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer

    from tunesmith.base.catalog import resolve
    from tunesmith.data.sources import load_rows

    folder, written = resolve("smollm2-135m").path, name == "trl as written"
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder, device_map="cpu", dtype=torch.float32, quantization_config=quantization if written else None
    )
    if written:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=True)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(r=8, lora_alpha=16, bias="none", lora_dropout=0.05, task_type="CAUSAL_LM", target_modules=targets)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.unk_token
    chats = [
        {"messages": [{"role": role, "content": row.values[column]} for role, column in _SIDES]}
        for row in load_rows("yoda", limit=rows)
    ]
    arguments = SFTConfig(
        gradient_checkpointing=written, gradient_checkpointing_kwargs={"use_reentrant": False}, gradient_accumulation_steps=1,
        per_device_train_batch_size=16, max_length=64, packing=True, packing_strategy="wrapped", num_train_epochs=1,
        max_steps=max_steps, learning_rate=3e-4, optim="adamw_torch", logging_steps=10, report_to="none", save_strategy="no",
        use_cpu=True, bf16=False, output_dir=tempfile.mkdtemp(), train_sampling_strategy="sequential",
    )  # fmt: skip
    trainer = SFTTrainer(
        model=model, peft_config=lora, processing_class=tokenizer, args=arguments, train_dataset=Dataset.from_list(chats)
    )
    start = time.perf_counter()
    outcome = trainer.train()
    seconds = time.perf_counter() - start
    return {
        **_measured(seconds, outcome.global_step, -(-len(trainer.train_dataset) // 16)),
        "losses": [round(float(e["loss"]), 4) for e in trainer.state.log_history if "loss" in e],
        "packed_sha256": _digest(trainer.train_dataset["input_ids"]),
        "held_out_loss": _held_out_loss(trainer.model.base_model.model, tokenizer),
    }


_SIDES = (("user", "sentence"), ("assistant", "translation_extra"))


def _measured(seconds: float, steps: int, steps_per_epoch: int) -> dict:
    return {
        "seconds": round(seconds, 2),
        "steps": steps,
        "steps_per_epoch": steps_per_epoch,
        "seconds_per_epoch": round(seconds / steps * steps_per_epoch, 2),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
    }


def _digest(rows: list[list[int]]) -> str:
    return hashlib.sha256(json.dumps([list(map(int, row)) for row in rows]).encode()).hexdigest()


def _held_out_loss(model: object, tokenizer: object) -> float:
    """Mean over the answer tokens of the held-out rows, by transformers' own forward."""
    from tunesmith.data.formats import Columns, to_conversations
    from tunesmith.data.packing import make_pack
    from tunesmith.data.render import Renderer
    from tunesmith.data.sources import load_rows
    from tunesmith.training.loop import evaluate
    from tunesmith.training.step import plain_loss

    conversations = to_conversations(load_rows("yoda", "test"), Columns(None, "sentence", "translation_extra"))
    examples = Renderer(tokenizer).examples(conversations)
    packs = [make_pack([[e] for e in examples[i : i + 16]], shared_prefix=False) for i in range(0, len(examples), 16)]
    return round(evaluate(model, plain_loss(model), packs), 4)


def report(runs: dict[str, list[dict]], options: argparse.Namespace) -> None:
    """Print the comparisons and write the dated result file."""
    import torch
    from rich.console import Console
    from rich.table import Table

    best = {name: statistics.median(r["seconds_per_epoch"] for r in records) for name, records in runs.items()}
    table = Table(title=f"One epoch of {options.rows} rows, {torch.get_num_threads()} CPU threads")
    for column in ("", "s/epoch", "reference s/epoch", "ratio", "bar", "peak GB", "reference", "held-out loss", "reference"):
        table.add_column(column)
    comparisons = []
    for title, mine, other, bar in COMPARISONS:
        a, b = runs[mine][0], runs[other][0]
        ratio = best[other] / best[mine]
        table.add_row(
            title, f"{best[mine]:.1f}", f"{best[other]:.1f}", f"{ratio:.2f}×", f"{bar}×", f"{a['peak_gb']}", f"{b['peak_gb']}",
            f"{a['held_out_loss']}", f"{b['held_out_loss']}",
        )  # fmt: skip
        comparisons.append({"comparison": title, "tunesmith": mine, "reference": other, "ratio": round(ratio, 2), "bar": bar})
    Console(width=130).print(table)
    record = {
        "date": datetime.date.today().isoformat(),
        "command": f"python benchmarks/cpu_recipe.py --rows {options.rows} --max-steps {options.max_steps}",
        "device": {"cpu": _cpu(), "threads": torch.get_num_threads(), "system": platform.platform()},
        "versions": {name: _version(name) for name in ("torch", "transformers", "peft", "bitsandbytes", "trl", "tunesmith")},
        "rows": options.rows,
        "comparisons": comparisons,
        "runs": runs,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{record['date']}-cpu_recipe.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"written to {path}")


def _cpu() -> str:
    names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()


def _version(name: str) -> str:
    from importlib.metadata import version

    return version(name)


if __name__ == "__main__":
    main()
