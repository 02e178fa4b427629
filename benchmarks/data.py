"""The data path: preparation of rows, packing, and what sharing prefixes saves, each against trl in the same run.

    python benchmarks/data.py                        # everything, an hour on two free cores
    python benchmarks/data.py prepare --rows 100000  # file to first batch, cold and from the cache, against trl
    python benchmarks/data.py million                # 1,000,000 rows: time and memory, streamed, at once, from the cache
    python benchmarks/data.py packing                # slots filled and time to plan, 1,000,000 log-normal lengths
    python benchmarks/data.py training --steps 2     # with and without shared prefixes, and by trl: 12 minutes

Every measurement runs in a process of its own. Ratios of training compare tokens of the same rows a second: updates hold the
same rows with and without sharing; trl packs with its own best strategy (``bfd``, no padding) and about the same rows an update.
"""

import argparse
import datetime
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

PARTS = ("prepare", "million", "packing", "training")
SYSTEM, TURN = 512, 100
"""Tokens, about, of the long system prompt and of a turn under it."""
PROMPTED = 800
"""Rows under it: enough that the default batch is not made smaller for want of updates."""
TRL_ACCUMULATION = 8
"""Of packed rows that hold four examples each: 32 rows an update, which is tunesmith's default here."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default all")
    parser.add_argument("--rows", type=int, default=100_000, help="rows of `prepare`")
    parser.add_argument("--million", type=int, default=1_000_000, help="rows of `million`")
    parser.add_argument("--steps", type=int, default=-1, help="updates of `training`; default an epoch")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--only", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        name, *arguments = options.only
        print("RESULT", json.dumps(MEASURES[name](*arguments)))
        return
    load = os.getloadavg()[0]
    parts = options.parts or list(PARTS)
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}")
    results: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        if "prepare" in parts:
            results["prepare"] = prepare(Path(folder), options.rows)
        if "million" in parts:
            results["million"] = million(Path(folder), options.million)
        if "packing" in parts:
            results["packing"] = measure("packing")
        if "training" in parts:
            results["training"] = training(Path(folder), options.steps)
    write(results, options, load)


def measure(name: str, *arguments: object) -> dict:
    """The record of one measurement, made in a process of its own."""
    command = [sys.executable, __file__, "--only", name, *map(str, arguments)]
    print(f"… {name}", flush=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            record = json.loads(line.removeprefix("RESULT "))
            print("  " + ", ".join(f"{key} {value}" for key, value in record.items() if not isinstance(value, list)), flush=True)
            return record
    sys.exit(f"{name} failed:\n{done.stderr[-4000:]}")


def prepare(folder: Path, rows: int) -> dict:
    """File to first batch: without a cache, with one, after one row changed, and by trl."""
    path = write_chats(folder / "rows.jsonl", rows)
    cold, again = (measure("tunesmith_prepares", path, folder / "cache") for _ in range(2))
    lines = path.read_text().splitlines()
    lines[rows // 2] = lines[rows // 2].replace("user", "system", 1)
    path.write_text("\n".join(lines) + "\n")
    changed = measure("tunesmith_prepares", path, folder / "cache")
    assert changed["sha256"] != cold["sha256"] == again["sha256"]
    peer, spread = measure("trl_prepares", path, 1), measure("trl_prepares", path, os.cpu_count())
    return {
        "rows": rows, "tunesmith": cold, "tunesmith, second start": again, "tunesmith, one row changed": changed, "trl": peer,
        "trl, a process a core": spread, "times faster than trl": round(peer["seconds"] / cold["seconds"], 1),
        "times faster than trl, a process a core": round(spread["seconds"] / cold["seconds"], 1),
        "bars": {"seconds": 8, "second start": 2, "times faster": 5},
    }  # fmt: skip


def million(folder: Path, rows: int) -> dict:
    """Memory and time of very many rows: streamed, read at once, and from the cache."""
    path = write_chats(folder / "million.jsonl", rows)
    streamed = measure("tunesmith_streams", path)
    whole, again = (measure("tunesmith_prepares", path, folder / "cache") for _ in range(2))
    return {
        "rows": rows, "tunesmith, streaming": streamed, "tunesmith": whole, "tunesmith, second start": again,
        "share of the time before the first batch": round(streamed["first_batch_seconds"] / streamed["seconds"], 3),
        "bars": {"peak GB": 1.5},
    }  # fmt: skip


def write_chats(path: Path, rows: int) -> Path:
    """Short chats of the bundled data's words."""
    words, draw = _words(), random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            said = [" ".join(draw.choices(words, k=draw.randint(4, 16))) for _ in range(2)]
            messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), said)]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


def _words() -> list[str]:
    from tunesmith.data.sources import load_rows

    return [word for row in load_rows("yoda") for word in f"{row.values['sentence']} {row.values['translation_extra']}".split()]


def tunesmith_prepares(path: str, cache: str) -> dict:
    """Rows of a file to the first batch; the tokenizer is loaded before."""
    from tunesmith.data.cache import Cache
    from tunesmith.data.dataset import prepare
    from tunesmith.data.loader import Loader
    from tunesmith.data.render import Renderer
    from tunesmith.recipe import Recipe

    renderer, before = Renderer(_tokenizer()), _peak()
    start, used = time.perf_counter(), time.process_time()
    data = prepare(Recipe.of({"dataset_name": path, "max_length": 512}), renderer, 8192, cache=Cache(Path(cache)))
    packs = next(Loader(data.rows, 8).epoch(0))
    return {
        "seconds": round(time.perf_counter() - start, 2), "cpu_seconds": round(time.process_time() - used, 2),
        "first_batch_tokens": sum(len(pack.input_ids) for pack in packs), "tokens": data.facts.tokens,
        "peak_gb": round(_peak(), 2), "peak_gb_before": round(before, 2), "sha256": data.facts.sha256[:16],
    }  # fmt: skip


def tunesmith_streams(path: str) -> dict:
    """Rows of a file, streamed: to the first batch, and to the last of an epoch. Nothing is trained, so nothing is waited for."""
    from tunesmith.data.dataset import prepare
    from tunesmith.data.loader import Loader
    from tunesmith.data.render import Renderer
    from tunesmith.recipe import Recipe

    renderer, before = Renderer(_tokenizer()), _peak()
    start, used = time.perf_counter(), time.process_time()
    recipe = Recipe.of({"dataset_name": path, "max_length": 512, "streaming": True, "max_steps": 1})
    data = prepare(recipe, renderer, 8192)
    assert data.shards is not None
    shards = Loader(data.rows, 8, more=data.shards.since).shards()
    next(next(shards)[1].epoch(0))
    first = time.perf_counter() - start
    parts = 1 + sum(1 for _ in shards)
    return {
        "first_batch_seconds": round(first, 2), "seconds": round(time.perf_counter() - start, 2), "shards": parts,
        "cpu_seconds": round(time.process_time() - used, 2), "rows": data.so_far.rows, "tokens": data.so_far.tokens,
        "peak_gb": round(_peak(), 2), "peak_gb_before": round(before, 2),
    }  # fmt: skip


def trl_prepares(path: str, processes: str) -> dict:
    """The same by trl with packing, in one process (its default) or more: `SFTTrainer` made and its first batch drawn."""
    import torch
    from datasets import load_dataset
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    tokenizer = _tokenizer()
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder, max_length=512, packing=True, packing_strategy="bfd",
            dataset_num_proc=int(processes) if int(processes) > 1 else None,
            per_device_train_batch_size=8, report_to="none", use_cpu=True, bf16=False, disable_tqdm=True,
        )  # fmt: skip
        start = time.perf_counter()
        rows = load_dataset("json", data_files=path, split="train", cache_dir=folder)
        trainer = SFTTrainer(model=model, processing_class=tokenizer, args=arguments, train_dataset=rows)
        batch = next(iter(trainer.get_train_dataloader()))
        seconds = time.perf_counter() - start
    assert isinstance(batch["input_ids"], torch.Tensor)
    return {"seconds": round(seconds, 2), "first_batch_tokens": batch["input_ids"].numel(), "peak_gb": round(_peak(), 2)}


def packing() -> dict:
    """Slots filled and seconds to plan, for log-normal lengths."""
    import numpy as np

    from tunesmith.data.best_fit import best_fit

    drawn = []
    for mean, deviation, max_length in ((4.0, 0.8, 1024), (5.0, 0.8, 2048), (5.5, 1.0, 4096), (6.0, 0.8, 2048)):
        tokens = np.random.default_rng(0).lognormal(mean, deviation, 1_000_000).astype(np.int64)
        lengths = np.clip(tokens, 1, max_length)
        start = time.perf_counter()
        rows = best_fit(lengths, max_length)
        seconds = round(time.perf_counter() - start, 2)
        filled = round(float(lengths.sum() / (len(rows) * max_length)), 5)
        drawn.append({"mean": mean, "deviation": deviation, "max_length": max_length, "filled": filled, "seconds": seconds})
    least, most = min(case["filled"] for case in drawn), max(case["seconds"] for case in drawn)
    return {"rows": 1_000_000, "cases": drawn, "least_filled": least, "most_seconds": most, "bars": {"filled": 0.99, "seconds": 3}}


def training(folder: Path, steps: int) -> dict:
    """The same updates with and without shared prefixes, of the bundled data and of turns under a long system prompt, each way
    twice in turn; and by trl. ``steps``: of the long prompt; four times as many of the bundled data, whose updates are short."""
    prompted = write_prompted(folder / "prompted.jsonl", PROMPTED)
    record: dict[str, dict] = {}
    for name, data, updates in (("bundled data", "yoda", max(4 * steps, -1)), ("long system prompt", prompted, steps)):
        runs = [measure("tunesmith_trains", data, shared, updates) for _ in range(2) for shared in (True, False)]
        shared, separate = runs[::2], runs[1::2]
        record[name] = {
            "shared": shared, "separate": separate,
            "ratio": round(sum(run["seconds"] for run in separate) / sum(run["seconds"] for run in shared), 2),
            "ratios of the pairs": [round(b["seconds"] / a["seconds"], 2) for a, b in zip(shared, separate)],
            "largest_loss_gap": max(abs(a - b) for a, b in zip(shared[0]["losses"], separate[0]["losses"])),
        }  # fmt: skip
    peer = measure("trl_trains", prompted, steps)
    mine = sum(run["row_tokens_a_second"] for run in record["long system prompt"]["shared"]) / 2
    record["long system prompt"]["trl"] = peer
    record["long system prompt"]["ratio to trl"] = round(mine / peer["row_tokens_a_second"], 2)
    record["bars"] = {"bundled data": 1.4, "long system prompt": 3.5, "to trl": 6.0}
    return record


def write_prompted(path: Path, rows: int) -> Path:
    """Turns of about ``TURN`` tokens under one system prompt of ``SYSTEM``."""
    tokenizer, words, draw = _tokenizer(), _words(), random.Random(1)

    def text(tokens: int) -> str:
        said = ""
        while len(tokenizer(said)["input_ids"]) < tokens:
            said += draw.choice(words) + " "
        return said.strip()

    system = text(SYSTEM)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            said = [("system", system), ("user", text(TURN // 2 - 6)), ("assistant", text(TURN // 2 - 6))]
            file.write(json.dumps({"messages": [{"role": role, "content": content} for role, content in said]}) + "\n")
    return path


def tunesmith_trains(data: str, shared: str, steps: str) -> dict:
    """An epoch, or so many updates, in float32 without dropout, the batch as it is by default: the same rows an update with and
    without sharing. The first update, which is slower, is not counted."""
    from tunesmith.job import load_job, prepare_run
    from tunesmith.recipe import Recipe
    from tunesmith.training.loop import train

    recipe = Recipe.of({
        "dataset_name": data, "num_train_epochs": 1, "max_steps": int(steps), "shared_prefix": shared == "True",
        "lora_dropout": 0.0, "dtype": "float32",
    })  # fmt: skip
    job, _ = prepare_run(recipe)
    model, loss_of, _ = load_job(job)
    reports = list(train(model, loss_of, job.loader, job.recipe, job.recipe.learning_rate))
    counted = reports[1:] or reports
    windows = list(islice(job.loader.epoch(0), len(reports)))
    computed = sum(len(pack.input_ids) for window in windows for pack in window)
    seconds = sum(report.seconds for report in counted)
    return {
        "seconds": round(seconds, 2), "updates": len(counted), "packs_an_update": round(sum(map(len, windows)) / len(windows), 2),
        "rows_tokens": sum(report.tokens for report in reports), "computed_tokens": computed,
        "row_tokens_a_second": round(sum(report.tokens for report in counted) / seconds, 1), "peak_gb": round(_peak(), 2),
        "losses": [round(report.loss, 6) for report in reports],
    }  # fmt: skip


def trl_trains(data: str, steps: str) -> dict:
    """The same rows by trl with its best packing, without quantisation and recomputation, which on a CPU only cost it time.
    An update has about as many rows as tunesmith's; the first is not counted if there are three."""
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from tunesmith.base.catalog import resolve

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.begins: list[float] = []
            self.ends: list[float] = []

        def on_step_begin(self, args: object, state: object, control: object, **_: object) -> None:
            self.begins.append(time.perf_counter())

        def on_step_end(self, args: object, state: object, control: object, **_: object) -> None:
            self.ends.append(time.perf_counter())

    model = AutoModelForCausalLM.from_pretrained(resolve("smollm2-135m").path, dtype=torch.float32)
    clock = Clock()
    lora = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    with tempfile.TemporaryDirectory() as folder:
        rows = load_dataset("json", data_files=data, split="train", cache_dir=folder)
        arguments = SFTConfig(
            output_dir=folder, max_length=4 * (SYSTEM + TURN + 30), packing=True, packing_strategy="bfd", num_train_epochs=1,
            max_steps=3 if int(steps) < 0 else min(max(int(steps) - 1, 1), 3), per_device_train_batch_size=1,
            gradient_accumulation_steps=TRL_ACCUMULATION,
            gradient_checkpointing=False, learning_rate=3e-4, report_to="none", save_strategy="no", use_cpu=True, bf16=False,
            disable_tqdm=True, train_sampling_strategy="sequential",
        )  # fmt: skip
        trainer = SFTTrainer(
            model=model, peft_config=lora, processing_class=_tokenizer(), args=arguments, train_dataset=rows, callbacks=[clock]
        )
        lengths = [len(ids) for ids in trainer.train_dataset["input_ids"]]
        trainer.train()
    first = int(len(clock.ends) > 2)
    seconds = clock.ends[-1] - clock.begins[first]
    tokens = sum(lengths[TRL_ACCUMULATION * first : TRL_ACCUMULATION * len(clock.ends)])
    return {
        "seconds": round(seconds, 2), "updates": len(clock.ends) - first, "rows_tokens": tokens,
        "row_tokens_a_second": round(tokens / seconds, 1), "peak_gb": round(_peak(), 2),
    }  # fmt: skip


def _tokenizer() -> object:
    from tunesmith.base.catalog import resolve
    from tunesmith.base.tokenizer import load_tokenizer

    return load_tokenizer(resolve("smollm2-135m"))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


MEASURES: dict[str, Callable[..., dict]] = {
    function.__name__: function
    for function in (tunesmith_prepares, tunesmith_streams, trl_prepares, packing, tunesmith_trains, trl_trains)
}


def write(results: dict[str, dict], options: argparse.Namespace, load: float) -> None:
    """The dated result file; parts measured on one day are put together."""
    from importlib.metadata import version

    names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    today = datetime.date.today().isoformat()
    path = options.out / f"{today}-data.json"
    before = json.loads(path.read_text(encoding="utf-8"))["results"] if path.is_file() else {}
    conditions = {
        "command": f"python benchmarks/data.py {' '.join(results)} --rows {options.rows} --steps {options.steps}",
        "load_before": round(load, 2), "threads": os.environ.get("OMP_NUM_THREADS", "all"),
    }  # fmt: skip
    record = {
        "date": today,
        "device": {"cpu": f"{names[0]}, {len(names)} cores" if names else platform.processor(), "system": platform.platform()},
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers", "datasets", "trl", "tunesmith")},
        "results": {**before, **{name: {"conditions": conditions, **result} for name, result in results.items()}},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
