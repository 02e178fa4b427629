"""Answers: tunesmith against transformers' own `generate`, the same NF4 base, adapter and prompts, in one process.

    python benchmarks/generation.py [--run RUN]          # CPU: the bundled model, an adapter trained on the bundled data
    python benchmarks/generation.py --folder FOLDER      # GPU: random weights of the Phi-3-mini shape, made there if absent

Pairs in turn, theirs and then ours, after one of each to warm up (its time is recorded): medians, and the ratio of each pair.
Greedy tokens are compared in every pair. Cases:

    one stream    one prompt
    batch of 16   16 prompts of different lengths, theirs padded on the left to one batch

Theirs: transformers + bitsandbytes + peft as their documentation has it, `generate` with its default cache. Ours: the weights
kept dequantised, as a session chooses where memory allows; ``--on-the-fly`` dequantises them at each use.
On a GPU the clock runs in bf16. Random weights make near ties, which two orders of the same sum decide differently in bf16, so
tokens are compared in fp32 as well, with both models loaded anew; that comparison is the one that must hold.
"""

import argparse
import datetime
import gc
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]  # also where tunesmith is not installed

PROMPTS, ANSWER = 16, 64
BARS = {"cpu": {"one stream": 1.2, "batch of 16": 1.5}, "cuda": {"batch of 16": 3.0}}
Answers = list[list[int]]
Ask = Callable[[Sequence[list[int]]], Answers]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a finished run on the bundled model; without it one is trained (a minute or two)")
    parser.add_argument("--folder", type=Path, help="the model of the Phi-3-mini shape, for a GPU; made there if absent (8 GB)")
    parser.add_argument("--layers", type=int, default=32, help="fewer layers, to try the script out")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--answer", type=int, default=ANSWER, help="tokens of an answer, at most")
    parser.add_argument("--on-the-fly", action="store_true", help="ours dequantises at each use")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        (on_folder if options.folder else on_bundled)(options, Path(scratch))


def on_bundled(options: argparse.Namespace, scratch: Path) -> None:
    import torch

    run = options.run or trained(scratch)
    ours, prompts, stops, pad, base = bundled_session(run, not options.on_the_fly, options.answer)
    model = theirs_of(base, run, torch.float32, "cpu")
    theirs = asking(model, stops, pad, options.answer)
    write(options, "cpu", cases(ours, theirs, prompts, options.pairs), {"adapter": "given" if options.run else "trained here"})


def on_folder(options: argparse.Namespace, scratch: Path) -> None:
    import torch
    from benchmarks.gpu_recipe import make_folder

    if not options.folder.is_dir():
        make_folder(options.folder, options.layers)
        gc.collect()
        torch.cuda.empty_cache()
    prompts = random_prompts()
    adapter = random_adapter(options.folder, scratch / "adapter")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    records = {}
    timed_in = torch.bfloat16 if device == "cuda" else torch.float32  # without a GPU, to try the script out
    for dtype, pairs in ((torch.float32, 0), (timed_in, options.pairs)):
        ours = ours_of(options.folder, adapter, dtype, not options.on_the_fly, options.answer)
        theirs = asking(theirs_of(str(options.folder), adapter, dtype, device), [], 0, options.answer)
        records[str(dtype)] = cases(ours, theirs, prompts, pairs)
        if not pairs:
            checked = {name: case["same_answers"] for name, case in records[str(dtype)].items()}
        del ours, theirs
        gc.collect()
        torch.cuda.empty_cache()  # no more than a name where there is no GPU
    write(options, device, records[str(timed_in)], {"same_answers_fp32": checked, "layers": options.layers})


def cases(ours: Ask, theirs: Ask, prompts: Sequence[list[int]], pairs: int) -> dict[str, Any]:
    return {name: compare(ours, theirs, chosen, pairs) for name, chosen in (("one stream", prompts[:1]), ("batch of 16", prompts))}


def compare(ours: Ask, theirs: Ask, prompts: Sequence[list[int]], pairs: int) -> dict[str, Any]:
    """Pairs of calls on the same prompts; without any, the first call of each alone, for its tokens."""
    first = [timed(ask, prompts) for ask in (theirs, ours)]
    runs = [(timed(theirs, prompts), timed(ours, prompts)) for _ in range(pairs)]
    seconds = [[pair[side][0] for pair in runs] for side in (0, 1)]
    answers = [(first[0][1], first[1][1]), *((a[1], b[1]) for a, b in runs)]
    record: dict[str, Any] = {
        "prompts": [len(prompt) for prompt in prompts],
        "tokens": sum(map(len, first[1][1])),
        "same_answers": min(sum(x == y for x, y in zip(a, b, strict=True)) for a, b in answers) / len(prompts),
        "same_first_tokens": min(agreeing(a, b) for a, b in answers),
        "first_s": {"transformers": round(first[0][0], 3), "tunesmith": round(first[1][0], 3)},
    }
    if pairs:
        medians = [statistics.median(side) for side in seconds]
        record |= {
            "transformers_s": [round(value, 4) for value in seconds[0]], "tunesmith_s": [round(value, 4) for value in seconds[1]],
            "median_s": {"transformers": round(medians[0], 4), "tunesmith": round(medians[1], 4)},
            "ratio": round(medians[0] / medians[1], 2), "ratios": [round(a / b, 2) for a, b in zip(*seconds)],
        }  # fmt: skip
    return record


def agreeing(one: Answers, other: Answers) -> float:
    """Share of tokens before the first that differs, over all answers."""
    same = sum(next((at for at, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b))) for a, b in zip(one, other))
    return round(same / sum(map(len, one)), 4)


def timed(ask: Ask, prompts: Sequence[list[int]]) -> tuple[float, Answers]:
    import torch

    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    start = time.perf_counter()
    answers = ask(prompts)
    wait()
    return time.perf_counter() - start, answers


def trained(scratch: Path) -> Path:
    """A short run on the bundled data: enough for an adapter that changes the answers."""
    import tunesmith

    print("… training an adapter", flush=True)
    settings = {"max_steps": 30, "per_device_train_batch_size": 12, "learning_rate": 3e-3, "lora_dropout": 0.0}
    return tunesmith.train("smollm2-135m", "yoda", output_dir=str(scratch / "run"), **settings).folder


def bundled_session(run: Path, keep: bool, longest: int) -> tuple[Ask, list[list[int]], list[int], int, str]:
    """Ours, 16 held-out questions of the bundled data as prompts, stop and pad tokens, and the folder of the base."""
    from tunesmith.base.catalog import resolve
    from tunesmith.generate.engine import Sampling, generate
    from tunesmith.job import prepare_run
    from tunesmith.open_run import open_session
    from tunesmith.recipe import Recipe

    session = open_session(run)
    if not keep:
        raise SystemExit("--on-the-fly is for --folder")
    with tempfile.TemporaryDirectory() as unused:
        job, _ = prepare_run(
            Recipe.of({"model_name_or_path": "smollm2-135m", "dataset_name": "yoda", "output_dir": f"{unused}/run"})
        )
    asked = [conversation.as_dicts()[:-1] for conversation in job.data.questions[:PROMPTS]]
    prompts = [session.renderer.prompt_ids(messages) for messages in asked]
    pad, sampling = session.renderer.tokenizer.pad_token_id, Sampling(max_new_tokens=longest)

    def ask(given: Sequence[list[int]]) -> Answers:
        return generate(session.model, given, session.stop_ids, pad, sampling)

    return ask, prompts, session.stop_ids, pad, resolve("smollm2-135m").path


def ours_of(folder: Path, adapter: Path, dtype: Any, keep: bool, longest: int) -> Ask:
    from tunesmith.base.adapter import open_adapter
    from tunesmith.base.catalog import resolve
    from tunesmith.base.lean import speed_up
    from tunesmith.base.load import choose_compute, load_model
    from tunesmith.generate.decoder import Decoder
    from tunesmith.generate.engine import Sampling, generate
    from tunesmith.recipe import Recipe

    recipe = Recipe.of({"model_name_or_path": str(folder), "dtype": str(dtype).removeprefix("torch."), "cache_base": False})
    model = open_adapter(load_model(resolve(str(folder)), recipe, choose_compute(recipe)), adapter)
    print(speed_up(model, dtype, keep), "; plain:", Decoder(model, [], 0).plain_reason, flush=True)
    return lambda prompts: generate(model, prompts, [], 0, Sampling(max_new_tokens=longest))


def theirs_of(base: str, adapter: Path, dtype: Any, device: str) -> Any:
    """As the documentation of transformers and peft has it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    model = AutoModelForCausalLM.from_pretrained(base, device_map=device, quantization_config=quantization, dtype=dtype)
    return PeftModel.from_pretrained(model, str(adapter)).eval()


def asking(model: Any, stops: Sequence[int], pad: int, longest: int) -> Ask:
    """transformers' `generate` on prompts padded on the left."""
    import torch

    device = next(model.parameters()).device
    model.generation_config.eos_token_id = list(stops) or None

    def ask(prompts: Sequence[list[int]]) -> Answers:
        width = max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
        with torch.no_grad():
            output = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=longest, do_sample=False, pad_token_id=pad)
        return [until_stop(row, stops) for row in output[:, width:].tolist()]

    return ask


def until_stop(ids: list[int], stops: Sequence[int]) -> list[int]:
    end = next((at + 1 for at, token in enumerate(ids) if token in stops), len(ids))
    return ids[:end]


def random_prompts() -> list[list[int]]:
    """16 prompts of 16 to 96 tokens without anything in common."""
    draw = random.Random(0)
    return [[draw.randrange(10, 32000) for _ in range(draw.randint(16, 96))] for _ in range(PROMPTS)]


def random_adapter(folder: Path, made: Path) -> Path:
    """A LoRA adapter of rank 8 on every linear, with random factors of the size that training leaves behind."""
    import torch
    from benchmarks.gpu_recipe import TARGETS
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(str(folder)), dtype=torch.bfloat16)
        config = LoraConfig(r=8, lora_alpha=16, target_modules=list(TARGETS), task_type="CAUSAL_LM")
        model = get_peft_model(model, config)
    torch.manual_seed(0)
    from safetensors.torch import save_file

    tensors = {
        name.replace(".default", ""): 0.01 * torch.randn(parameter.shape)
        for name, parameter in model.named_parameters()
        if "lora_" in name
    }
    made.mkdir(parents=True)
    config.base_model_name_or_path, config.target_modules = str(folder), sorted(TARGETS)
    config.save_pretrained(made)
    save_file(tensors, made / "adapter_model.safetensors", metadata={"format": "pt"})
    return made


def write(options: argparse.Namespace, device: str, found: dict[str, Any], facts: dict[str, Any]) -> None:
    """Print the ratios, write the dated result file, and fail if tokens differ."""
    import torch

    for name, case in found.items():
        bar = BARS[device].get(name)
        print(
            f"{name}: {case['ratio']:.2f} times as fast (bar {bar or 'none'}; pairs {case['ratios']}), "
            f"{case['tokens']} tokens in {case['median_s']['tunesmith']:.3f} s, same answers {case['same_answers']:.0%}"
        )
    record = {
        "date": datetime.date.today().isoformat(),
        "command": "python benchmarks/generation.py " + ("--folder FOLDER " if options.folder else "") + f"--pairs {options.pairs}"
        + f" --answer {options.answer}" + (" --on-the-fly" if options.on_the_fly else ""),
        "device": {"name": _device(device), "threads": torch.get_num_threads(), "system": platform.platform()},
        "versions": {name: _version(name) for name in ("torch", "transformers", "peft", "bitsandbytes", "tunesmith")},
        "bars": BARS[device],
        **facts,
        "cases": found,
    }  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    kind = ("-cuda" if device == "cuda" else "") + ("-on_the_fly" if options.on_the_fly else "")
    path = options.out / f"{record['date']}-generation{kind}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"written to {path}")
    same = facts.get("same_answers_fp32") or {name: case["same_answers"] for name, case in found.items()}
    if any(share < 1 for share in same.values()):
        sys.exit(f"greedy tokens differ: {same}")


def _device(device: str) -> str:
    import torch

    if device == "cuda":
        return torch.cuda.get_device_name()
    names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()


def _version(name: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
