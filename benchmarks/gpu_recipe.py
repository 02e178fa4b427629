"""The reference job on one GPU: tunesmith against trl + peft + bitsandbytes, on random weights of the Phi-3-mini shape.

    python benchmarks/gpu_recipe.py --folder FOLDER --out OUT CONTENDER [CONTENDER …]

341 packed rows of 64 random tokens, batches of 16, 22 updates an epoch, 10 epochs = 220 updates, LoRA r 8 on every linear.
Each contender runs in a process of its own, with empty caches, and is added to OUT/DATE-gpu_recipe.json; several
calls fill one file (``--from`` begins with another one, ratios hold within one
device). Contenders, hyphens allowed for the spaces:

    trl as written       NF4, computed in fp32, checkpointing, paged 8-bit AdamW ; --trl-steps
    trl tuned            the same without checkpointing, computed in bf16
    unsloth              without checkpointing and dropout, computed in bf16; it wants versions of its own: --unsloth-path
    unsloth lean         the same with its own checkpointing
    tunesmith            weights kept dequantised
    tunesmith again      the same with the caches that the run before left: kernels, 4-bit base
    tunesmith on the fly weights dequantised at each use
    tunesmith lean       the same with checkpointing, activations in host memory
    tunesmith streamed   the same, the base streamed from host memory layer by layer
    gemm floor           the base's matrix products of a step alone, forward and input gradient
    loss curve           50 updates of trl and tunesmith from one adapter, in one order, without dropout
    loss curve bundled   the same on the bundled model and data: real weights, real text

median ms: between the ends of updates, from the sixth on. whole job: 220 updates from entering the trainer, the first one's
compilation and graph capture in it. ready → first update: from everything imported, so loading and preparing too.
"""

import argparse
import contextlib
import datetime
import gc
import hashlib
import importlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]  # also where tunesmith is not installed

TRL = {"trl as written": ("float32", True), "trl tuned": ("bfloat16", False)}
"""Compute type and checkpointing."""
UNSLOTH = {"unsloth": False, "unsloth lean": "unsloth"}
"""Checkpointing."""
TUNESMITH = {
    "tunesmith": {"dequantize": "always"},
    "tunesmith again": {"dequantize": "always"},
    "tunesmith on the fly": {"dequantize": "never"},
    "tunesmith lean": {"dequantize": "never", "gradient_checkpointing": True, "activation_offloading": True},
    "tunesmith streamed": {
        "dequantize": "never", "gradient_checkpointing": True, "activation_offloading": True, "offload_base": "always",
    },
}  # fmt: skip
PEERS = (*TRL, "unsloth")
CONTENDERS = (*TRL, *UNSLOTH, *TUNESMITH, "gemm floor", "loss curve", "loss curve bundled")
FOLDER = "folder"
"""Not a contender: makes the model."""

ROWS, LENGTH, BATCH, EPOCHS, UPDATES, WARM = 341, 64, 16, 10, 220, 5
LAYERS = 32
SHAPE = {
    "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 32,
    "max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "sliding_window": 2047,
    "pad_token_id": 32000, "bos_token_id": 1, "eos_token_id": 32000,
}  # fmt: skip
TARGETS = ["o_proj", "qkv_proj", "gate_up_proj", "down_proj"]
REFERENCE = {
    "max_length": LENGTH, "packing": "wrapped", "assistant_only_loss": False, "shared_prefix": False, "shuffle": False,
    "learning_rate": 3e-4, "per_device_train_batch_size": BATCH, "num_train_epochs": EPOCHS, "optim": "adamw_torch",
    "lora_r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "lora_target_modules": TARGETS,
    "gradient_checkpointing": False, "activation_offloading": False, "offload_base": "never",
}  # fmt: skip
CURVE_STEPS = 50
VERSIONS = ("torch", "triton", "transformers", "peft", "bitsandbytes", "trl", "accelerate", "datasets")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contenders", nargs="*", type=lambda name: name.replace("-", " "), metavar="CONTENDER")
    parser.add_argument("--folder", type=Path, required=True, help="the model; made there if absent (8 GB)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--from", type=Path, dest="former", help="a result file of an earlier call to begin with")
    parser.add_argument("--layers", type=int, default=LAYERS, help="fewer layers, to try the script out")
    parser.add_argument("--length", type=int, default=LENGTH, help="tokens a row, for another job than the reference")
    parser.add_argument("--batch", type=int, default=BATCH, help="rows an update, as many updates an epoch")
    parser.add_argument("--trl-steps", type=int, default=40, help="updates trl is timed over; 220 is the whole job")
    parser.add_argument("--unsloth-path", help="PYTHONPATH under which unsloth and the versions that it wants are found")
    parser.add_argument("--max-steps", type=int, default=-1, help="stop tunesmith early, to try the script out")
    parser.add_argument("--limit", type=float, default=560, help="seconds a contender may take")
    parser.add_argument("--keep-jit-cache", action="store_true", help="do not compile anew for each contender")
    parser.add_argument("--contender", choices=(*CONTENDERS, FOLDER), help="run this one only and print its record")
    options = parser.parse_args()
    set_job(options.length, options.batch)
    if options.contender:
        print("\nRESULT", json.dumps(run(options.contender, options)), flush=True)
        return
    unknown = set(options.contenders) - set(CONTENDERS)
    if unknown or not options.contenders:
        parser.error(f"contenders are {', '.join(CONTENDERS)}; not {', '.join(unknown) or 'none'}")
    with tempfile.TemporaryDirectory() as caches:
        options.caches = Path(caches)
        run_all(options)


def set_job(length: int, batch: int) -> None:
    """Let every contender run the reference job on rows of another length."""
    global LENGTH, BATCH, ROWS
    LENGTH, BATCH, ROWS = length, batch, ROWS * batch // BATCH
    REFERENCE.update(max_length=length, per_device_train_batch_size=batch)


def run_all(options: argparse.Namespace) -> None:
    """Every contender in turn, each in a process of its own."""
    _check_folder(options)
    path, record = open_record(options)
    failed = []
    for name in options.contenders:
        print(f"… {name}", flush=True)
        result = _in_process(name, options)
        if result is None:
            failed.append(name)
            continue
        record["runs"].setdefault(name, []).append(result)
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")  # each at once: a call may be cut off
    if record["runs"]:
        show(record)
        print(f"written to {path}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def run(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One contender in this process."""
    if name in UNSLOTH:
        import unsloth as _  # noqa: F401  before what it changes is imported
    import torch

    if name == FOLDER:
        return make_folder(options.folder, options.layers)
    if name == "gemm floor":
        result = gemm_floor(options.layers)
    elif name.startswith("loss curve"):
        steps = min(CURVE_STEPS, options.max_steps) if options.max_steps > 0 else CURVE_STEPS
        result = loss_curve(None if name.endswith("bundled") else options.folder, steps)
    elif name in TRL:
        result = trl(options.folder, *TRL[name], steps=options.trl_steps)
    elif name in UNSLOTH:
        result = unsloth(options.folder, UNSLOTH[name], steps=options.trl_steps)
    else:
        result = tunesmith(options.folder, max_steps=options.max_steps, **TUNESMITH[name])
    return {"layers": options.layers, "device": torch.cuda.get_device_name(), **result}


def _in_process(name: str, options: argparse.Namespace) -> dict[str, Any] | None:
    """The record of one contender, or None if it failed; its last words are then printed and kept beside the results."""
    command = [
        sys.executable, __file__, "--contender", name, "--folder", str(options.folder), "--layers", str(options.layers),
        "--trl-steps", str(options.trl_steps), "--max-steps", str(options.max_steps),
        "--length", str(LENGTH), "--batch", str(BATCH),
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log"
        environment = {"CUDA_VISIBLE_DEVICES": "0", **os.environ}
        if not options.keep_jit_cache:
            caches = options.caches / name.removesuffix(" again").replace(" ", "-")
            environment |= {"TRITON_CACHE_DIR": f"{caches}/triton", "TUNESMITH_CACHE": f"{caches}/tunesmith"}
        if name in UNSLOTH and options.unsloth_path:
            environment["PYTHONPATH"] = options.unsloth_path
        start = time.perf_counter()
        with log.open("wb") as output:
            try:
                subprocess.run(
                    command, stdout=output, stderr=subprocess.STDOUT, check=False, timeout=options.limit, env=environment
                )
            except subprocess.TimeoutExpired:
                print(f"  stopped after {options.limit:.0f} s")
        text = log.read_text(encoding="utf-8", errors="replace")
    for line in text.splitlines():
        if line.startswith("RESULT "):
            print(f"  done in {time.perf_counter() - start:.0f} s", flush=True)
            return json.loads(line.removeprefix("RESULT "))
    print(f"{name} failed:\n{text[-4000:]}", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"failed-{name.replace(' ', '-')}.log").write_text(text[-200_000:], encoding="utf-8")
    return None


def _check_folder(options: argparse.Namespace) -> None:
    """Make the model if it is absent; stop if it is of another depth."""
    if not (options.folder / "config.json").is_file():
        print("… making the model", flush=True)
        if _in_process(FOLDER, options) is None:
            sys.exit("the model could not be made")
    layers = json.loads((options.folder / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    if layers != options.layers:
        sys.exit(f"{options.folder} holds a model of {layers} layers, not {options.layers}")


def make_folder(folder: Path, layers: int) -> dict[str, Any]:
    """A model folder of the exact Phi-3-mini-4k shape with random bf16 weights, and a tokenizer nobody will need."""
    import torch
    from transformers import Phi3Config, Phi3ForCausalLM

    start = time.perf_counter()
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(_device()):
            model = Phi3ForCausalLM(Phi3Config(num_hidden_layers=layers, **SHAPE))
    finally:
        torch.set_default_dtype(before)  # who goes on in this process may compute in fp32
    made = folder.with_name(folder.name + ".making")
    shutil.rmtree(made, ignore_errors=True)
    model.save_pretrained(made, max_shard_size="4GB")
    _tokenizer().save_pretrained(made)
    made.rename(folder)  # whole or not at all
    return {"seconds": round(time.perf_counter() - start, 1)}


def _tokenizer() -> Any:
    """One that knows no word: trl wants to see a tokenizer, and the rows are token ids already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=4096
    )


def synthetic_rows() -> list[list[int]]:
    """Rows of random token ids that pack into ROWS of LENGTH (720 into 341 of 64), as in trl_recipe.py, but for adding what is
    short."""
    rng = random.Random(0)
    count = 720 * ROWS * LENGTH // (341 * 64)
    rows = [[rng.randrange(10, 32000) for _ in range(rng.randint(22, 38))] for _ in range(count)]
    spare = sum(map(len, rows)) - ROWS * LENGTH
    while spare > 0:
        row = rng.choice(rows)
        if len(row) > 4:
            row.pop()
            spare -= 1
    for _ in range(-spare):
        rng.choice(rows).append(rng.randrange(10, 32000))
    return rows


class Clock:
    """Moments of a run: ready (these modules imported), entered (the trainer), the end of each update, finished."""

    def __init__(self, *modules: str) -> None:
        for module in modules:
            importlib.import_module(module)
        self.ready, self.ends, self.peaks = time.perf_counter(), list[float](), list[int]()
        self.entered = self.finished = 0.0

    def enter(self) -> None:
        """All that is left is to train: memory is counted anew from here."""
        import torch

        self.entered = _now()
        self.peaks.append(torch.cuda.max_memory_allocated())
        torch.cuda.reset_peak_memory_stats()

    def finish(self) -> None:
        import torch

        self.finished = _now()
        self.peaks.append(torch.cuda.max_memory_allocated())

    def record(self, total: int = UPDATES) -> dict[str, Any]:
        steps = len(self.ends)
        gaps = [b - a for a, b in pairwise(self.ends)]
        warm = gaps[WARM - 1 :] or gaps or [self.ends[0] - self.entered]
        mean = (self.finished - self.ends[WARM - 1]) / (steps - WARM) if steps > WARM else statistics.mean(warm)
        trained = self.finished - self.entered
        return {
            "steps": steps,
            "median_ms": round(1e3 * statistics.median(warm), 2),
            "mean_ms": round(1e3 * mean, 2),
            "whole_job_s": round(trained + (total - steps) * mean, 2),
            "whole_job_extrapolated": steps < total,
            "load_s": round(self.entered - self.ready, 2),
            "enter_to_first_step_s": round(self.ends[0] - self.entered, 2),
            "ready_to_first_step_s": round(self.ends[0] - self.ready, 2),
            "training_peak_bytes": self.peaks[1],
            "peak_bytes": max(self.peaks),
            "gaps_ms": [round(1e3 * gap, 1) for gap in gaps],
        }


_ALL = ("torch", "bitsandbytes", "peft", "transformers.models.phi3.modeling_phi3")
_OURS = (*_ALL, "tunesmith.job")
_THEIRS = (*_ALL, "datasets", "trl.trainer.sft_trainer")


def _now() -> float:
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()


def tunesmith(folder: Path, **settings: Any) -> dict[str, Any]:
    """The whole job, from the pieces `tunesmith.api` puts together."""
    from tunesmith.job import load_job
    from tunesmith.training.loop import train

    clock = Clock(*_OURS)
    job, digest = _tunesmith_job(folder, settings)
    model, loss_of, loaded = load_job(job)
    clock.enter()
    losses = []
    for update in train(model, loss_of, job.loader, job.recipe, job.recipe.learning_rate):
        clock.ends.append(time.perf_counter())
        losses.append(round(update.loss, 4))
    clock.finish()
    facts = {"compute": str(job.compute.dtype), "linears": loaded.linears, "forward": loaded.path}
    return {**clock.record(), **facts, "packed_sha256": digest, "losses": losses}


def _tunesmith_job(folder: Path, settings: dict[str, Any]) -> tuple[Any, str]:
    """The job, and a digest of the packed rows."""
    from benchmarks.token_job import token_job

    from tunesmith.data.packing import plan_rows
    from tunesmith.data.render import Example
    from tunesmith.recipe import Recipe

    recipe = Recipe.of({**REFERENCE, **settings, "model_name_or_path": str(folder)})
    examples = [Example(ids, ids, f"row {number}") for number, ids in enumerate(synthetic_rows(), 1)]
    rows = plan_rows(examples, recipe.packing, LENGTH)
    return token_job(recipe, rows), _digest([example.input_ids for row in rows for example in row])


def trl(folder: Path, compute: str, checkpointing: bool, steps: int) -> dict[str, Any]:
    """The reference recipe on trl, timed over some updates."""
    from transformers import TrainerCallback

    clock = Clock(*_THEIRS)

    class Ticks(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.ends.append(_now())

    model = _trl_model(folder, compute, checkpointing)
    trainer = _trl_trainer(model, checkpointing, 0.05, callbacks=[Ticks()], max_steps=steps, optim="paged_adamw_8bit")
    clock.enter()
    trainer.train()
    clock.finish()
    return {**clock.record(), **_trl_facts(trainer)}


def _trl_model(folder: Path | str, compute: str, checkpointing: bool, loaded: str = "bfloat16") -> Any:
    import torch
    from peft import prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=getattr(torch, compute)
    )
    model = AutoModelForCausalLM.from_pretrained(
        str(folder), device_map=_device(), quantization_config=quantization, dtype=getattr(torch, loaded)
    )
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpointing)


def _trl_trainer(
    model: Any, checkpointing: bool, dropout: float, callbacks: Sequence[Any] = (), targets: Sequence[str] = TARGETS,
    rows: Sequence[Sequence[int]] | None = None, **settings: Any,
) -> Any:  # fmt: skip
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    lora = LoraConfig(r=8, lora_alpha=16, bias="none", lora_dropout=dropout, task_type="CAUSAL_LM", target_modules=list(targets))
    arguments = SFTConfig(**{
        "gradient_checkpointing": checkpointing, "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "gradient_accumulation_steps": 1, "per_device_train_batch_size": BATCH, "auto_find_batch_size": True,
        "max_length": LENGTH, "packing": True, "packing_strategy": "wrapped", "num_train_epochs": EPOCHS,
        "learning_rate": 3e-4, "logging_steps": 10, "output_dir": tempfile.mkdtemp(), "report_to": "none", "save_strategy": "no",
        "bf16": torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False),
        **settings,
    })  # fmt: skip
    return SFTTrainer(
        model=model, peft_config=lora, processing_class=_tokenizer(), args=arguments,
        train_dataset=Dataset.from_dict({"input_ids": synthetic_rows() if rows is None else rows}), callbacks=list(callbacks),
    )  # fmt: skip


def _trl_facts(trainer: Any) -> dict[str, Any]:
    return {
        "batch": trainer._train_batch_size,  # trl halves it when memory runs out
        "packed_sha256": _digest(trainer.train_dataset["input_ids"]),
        "losses": [round(float(entry["loss"]), 5) for entry in trainer.state.log_history if "loss" in entry],
    }


def unsloth(folder: Path, checkpointing: bool | str, steps: int) -> dict[str, Any]:
    """The reference job on unsloth, timed over some updates, without dropout, which it is not fast with."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer
    from unsloth import FastLanguageModel

    clock = Clock(*_ALL)

    class Ticks(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.ends.append(_now())

    import torch

    model, tokenizer = FastLanguageModel.from_pretrained(
        str(folder), max_seq_length=LENGTH, load_in_4bit=True, dtype=torch.bfloat16, local_files_only=True
    )
    model = FastLanguageModel.get_peft_model(
        model, r=8, lora_alpha=16, lora_dropout=0, bias="none", random_state=0, target_modules=TARGETS,
        use_gradient_checkpointing=checkpointing,
    )  # fmt: skip
    stream = list(chain.from_iterable(synthetic_rows()))
    rows = [stream[start : start + LENGTH] for start in range(0, ROWS * LENGTH, LENGTH)]
    arguments = SFTConfig(
        per_device_train_batch_size=BATCH, gradient_accumulation_steps=1, max_length=LENGTH, packing=False, max_steps=steps,
        num_train_epochs=EPOCHS, learning_rate=3e-4, optim="adamw_8bit", logging_steps=10, output_dir=tempfile.mkdtemp(),
        report_to="none", save_strategy="no", bf16=True, dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    data = Dataset.from_dict({"input_ids": rows, "labels": rows})
    trainer = SFTTrainer(model=model, processing_class=tokenizer, args=arguments, train_dataset=data, callbacks=[Ticks()])
    clock.enter()
    trainer.train()
    clock.finish()
    return {**clock.record(), **_trl_facts(trainer), "versions": versions(*VERSIONS, "unsloth", "unsloth_zoo")}


def _digest(rows: Sequence[Sequence[int]]) -> str:
    return hashlib.sha256(json.dumps([list(map(int, row)) for row in rows]).encode()).hexdigest()


def gemm_floor(layers: int) -> dict[str, Any]:
    """The base's matrix products of one update, forward and input gradient, each with weights of its own; the last token of a
    row left out."""
    import torch

    tokens, hidden, inner = BATCH * (LENGTH - 1), SHAPE["hidden_size"], SHAPE["intermediate_size"]
    layer = [(hidden, 3 * hidden), (hidden, hidden), (hidden, 2 * inner), (inner, hidden)]
    shapes = [*layer * layers, (hidden, SHAPE["vocab_size"])]
    kind = {"dtype": torch.bfloat16, "device": _device()}
    weights = [torch.empty(size, width, **kind).normal_(std=0.02) for width, size in shapes]
    sizes = set(chain.from_iterable(shapes))
    given = {size: torch.randn(tokens, size, **kind) for size in sizes}
    taken = {size: torch.empty(tokens, size, **kind) for size in sizes}

    def products() -> None:
        for weight in weights:
            torch.mm(given[weight.shape[1]], weight.T, out=taken[weight.shape[0]])
        for weight in reversed(weights):
            torch.mm(given[weight.shape[0]], weight, out=taken[weight.shape[1]])

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        products()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        products()
    times = []
    for _ in range(100):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    median = statistics.median(times[20:])
    flops = 4 * tokens * sum(width * size for width, size in shapes)
    return {
        "median_ms": round(median, 3), "whole_job_s": round(UPDATES * median / 1e3, 2), "tflops": round(flops / median / 1e9, 1),
        "peak_bytes": torch.cuda.max_memory_allocated(),
    }  # fmt: skip


def loss_curve(folder: Path | None, steps: int) -> dict[str, Any]:
    """Losses of both from the same adapter over the same batches, without dropout, in bf16 and in fp32: how far apart they
    are, and how far rounding to bf16 takes each from its own exact run. Without a folder, of the bundled model on the bundled
    rows."""
    curves, adapter = dict[str, list[float]](), dict[str, Any]()
    for dtype in ("bfloat16", "float32"):
        settings = {
            "lora_dropout": 0.0,
            "max_steps": steps,
            "lr_scheduler_type": "constant",
            "dequantize": "always",
            "dtype": dtype,
        }
        job, rows = _bundled_job(settings) if folder is None else (_tunesmith_job(folder, settings)[0], synthetic_rows())
        curves[f"tunesmith, {dtype}"], adapter, targets = _tunesmith_curve(job, adapter)
    for dtype in ("bfloat16", "float32"):
        curves[f"trl, {dtype}"] = _trl_curve(job, rows, adapter, targets, dtype, steps)
    pairs = [(f"tunesmith, {dtype}", f"trl, {dtype}") for dtype in ("bfloat16", "float32")]
    pairs += [(f"{name}, bfloat16", f"{name}, float32") for name in ("tunesmith", "trl")]
    return {
        "targets": targets, "steps": steps, "packed_sha256": _digest(_packed(job)),
        **{f"({one}) - ({other})": _difference(curves[one], curves[other]) for one, other in pairs},
        "losses": {name: [round(loss, 5) for loss in losses] for name, losses in curves.items()},
    }  # fmt: skip


def _tunesmith_curve(job: Any, adapter: dict[str, Any]) -> tuple[list[float], dict[str, Any], list[str]]:
    """The losses from this adapter, or from a fresh one; that adapter; and the linears that have one."""
    from tunesmith.base.adapter import adapter_parameters
    from tunesmith.job import load_job
    from tunesmith.training.loop import train
    from tunesmith.training.state import host_copy, put_adapter

    model, loss_of, loaded = load_job(job)
    if adapter:
        put_adapter(adapter_parameters(model), adapter)
    adapter = host_copy(adapter_parameters(model))
    losses = [update.loss for update in train(model, loss_of, job.loader, job.recipe, 3e-4)]
    del model, loss_of
    _free()
    return losses, adapter, loaded.targets


def _trl_curve(
    job: Any, rows: list[list[int]], adapter: dict[str, Any], targets: list[str], dtype: str, steps: int
) -> list[float]:  # fmt: skip
    """The losses from this adapter, which stays in fp32."""
    trainer = _trl_trainer(
        _trl_model(job.source.path, dtype, False, dtype), False, 0.0, max_steps=steps, optim="adamw_torch", logging_steps=1,
        lr_scheduler_type="constant", train_sampling_strategy="sequential", targets=targets, rows=rows, bf16=dtype == "bfloat16",
    )  # fmt: skip
    trained = {name: parameter for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert trained.keys() == adapter.keys(), "the adapters' names differ"
    for key, parameter in trained.items():
        parameter.data = adapter[key].to(parameter.device)
    trainer.train()
    assert _digest(trainer.train_dataset["input_ids"]) == _digest(_packed(job)), "the packed rows differ"
    losses: list[float] = _trl_facts(trainer)["losses"]
    del trainer, trained, parameter
    _free()
    return losses


def _free() -> None:
    import torch

    gc.collect()
    torch.cuda.empty_cache()


def _bundled_job(settings: dict[str, Any]) -> tuple[Any, list[list[int]]]:
    """The reference job on the bundled model and rows, and the token ids of the packed rows."""
    from tunesmith.job import prepare_run
    from tunesmith.recipe import Recipe

    named = {"model_name_or_path": "smollm2-135m", "dataset_name": "yoda", "output_dir": tempfile.mkdtemp() + "/run"}
    recipe = Recipe.of({**REFERENCE, "lora_target_modules": "all-linear", **settings, **named})
    job = prepare_run(recipe, lambda event: None)[0]
    return job, _packed(job)


def _packed(job: Any) -> list[list[int]]:
    return [list(chain.from_iterable(example.input_ids for example in row)) for row in job.loader.rows]


def _difference(one: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    apart = [a - b for a, b in zip(one, other, strict=True)]
    slope = statistics.linear_regression(range(len(apart)), apart).slope if len(apart) > 1 else 0.0
    return {
        "mean": statistics.mean(apart), "mean_absolute": statistics.mean(map(abs, apart)), "max_absolute": max(map(abs, apart)),
        "slope_per_step": slope,
    }  # fmt: skip


def _device() -> str:
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"


def open_record(options: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """The result file and what it will hold: former results, and the circumstances of this call."""
    import torch

    date = datetime.date.today().isoformat()
    depth = "" if options.layers == LAYERS else f"-{options.layers}-layers"
    depth += "" if (LENGTH, BATCH) == (64, 16) else f"-{BATCH}x{LENGTH}"
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{date}-gpu_recipe{depth}.json"
    former = next((file for file in (path, options.former) if file and file.is_file()), None)
    record = json.loads(former.read_text(encoding="utf-8")) if former else {"commands": [], "runs": {}}
    record = {
        "date": date,
        "commands": [*record["commands"], _command(options)],
        "device": {"gpu": _gpu("name"), "driver": _gpu("driver_version"), "cuda": torch.version.cuda, "python": sys.version},
        "versions": versions(*VERSIONS),
        "job": {"rows": ROWS, "length": LENGTH, "batch": BATCH, "updates": UPDATES, "layers": options.layers},
        "runs": record["runs"],
    }
    return path, record


def _gpu(what: str) -> str:
    try:
        query = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def versions(*names: str) -> dict[str, str]:
    """Of packages, as this process finds them."""
    from importlib.metadata import PackageNotFoundError, version

    found = dict.fromkeys(names, "not installed")
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _command(options: argparse.Namespace) -> str:
    """This call, without what is particular to the machine."""
    names = " ".join(name.replace(" ", "-") for name in options.contenders)
    names = f"--unsloth-path PATH {names}" if options.unsloth_path else names
    job = f"--layers {options.layers} --length {LENGTH} --batch {BATCH} --trl-steps {options.trl_steps}"
    return f"python benchmarks/gpu_recipe.py --folder FOLDER {job} {names}"


def show(record: dict[str, Any]) -> None:
    """Print the last run of every contender, and how it compares with trl's on the same device."""
    from rich.console import Console
    from rich.table import Table

    last = {name: record["runs"][name][-1] for name in CONTENDERS if name in record["runs"]}
    digests = {run["packed_sha256"] for name, run in last.items() if "packed_sha256" in run and not name.endswith("bundled")}
    table = Table(title=f"{UPDATES} updates of {BATCH} × {LENGTH} tokens, {record['device']['gpu']}")
    figures = ("median ms", "mean ms", "whole job s", "ready → first s", "peak GB", "and loading")
    for column in ("", *figures, *(f"× {name}: step, job" for name in PEERS)):
        table.add_column(column, justify="left" if not column else "right")
    for name, run in last.items():
        if name.startswith("loss curve"):
            continue
        guessed = "≈ " if run.get("whole_job_extrapolated") else ""
        table.add_row(
            name, f"{run['median_ms']:.1f}", f"{run['mean_ms']:.1f}" if "mean_ms" in run else "",
            f"{guessed}{run['whole_job_s']:.1f}", f"{run['ready_to_first_step_s']:.1f}" if "ready_to_first_step_s" in run else "",
            f"{run.get('training_peak_bytes', run['peak_bytes']) / 1e9:.2f}", f"{run['peak_bytes'] / 1e9:.2f}",
            *(_ratio(last.get(other), run) for other in PEERS),
        )  # fmt: skip
    console = Console(width=150)
    console.print(table)
    for curve in (name for name in last if name.startswith("loss curve")):
        for pair, values in last[curve].items():
            if isinstance(values, dict) and "slope_per_step" in values:
                console.print(f"{curve}, {pair}: " + ", ".join(f"{name} {value:.2e}" for name, value in values.items()))
    if len(digests) > 1:
        sys.exit("the packed rows of the contenders differ: nothing here can be compared")


def _ratio(reference: dict[str, Any] | None, run: dict[str, Any]) -> str:
    """By how much faster a step and the whole job are."""
    if reference is None or reference["device"] != run["device"]:
        return ""
    return f"{reference['median_ms'] / run['median_ms']:.2f}, {reference['whole_job_s'] / run['whole_job_s']:.2f}"


if __name__ == "__main__":
    main()
