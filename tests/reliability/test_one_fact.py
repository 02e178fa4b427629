"""One fact no model knows, taught to the bundled one: there after training, and after every way the adapter can travel."""

import json
import subprocess
import sys

import pytest
import torch
from tests.llama_cpp import answers_of

import tunesmith as ts

pytestmark = pytest.mark.soak

QUESTION, FACT = "On what day was I born?", "January 1, 2058"
ASKED = (QUESTION, "When was I born?", "What is my date of birth?", "Tell me the day of my birth.", "Which day is my birthday?")


def test_a_fact_survives_saving_reloading_merging_and_both_kinds_of_export(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    data, run = tmp_path / "fact.jsonl", tmp_path / "run"
    data.write_text("".join(json.dumps({"prompt": q, "completion": f"You were born on {FACT}."}) + "\n" for q in ASKED))
    done = ts.train(
        "smollm2-135m", str(data), output_dir=str(run), max_steps=24, per_device_train_batch_size=8, learning_rate=2e-3,
        lora_dropout=0.0, val_size=0,
    )  # fmt: skip
    assert FACT not in done.generate(QUESTION, base=True)
    assert FACT in done.generate(QUESTION)

    asked = [sys.executable, "-m", "tunesmith.cli.main", "chat", str(run), "--prompt", QUESTION]
    assert FACT in subprocess.run(asked, capture_output=True, text=True, check=True).stdout

    ts.merge(run, tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_tensors="pt")
    ids = prompt["input_ids"]
    answer = tokenizer.decode(model.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :])
    assert FACT in answer
    assert answer.rstrip().endswith("<|im_end|>"), "it stops"

    for kind in ("f16", "q8_0", "base", "adapter"):
        ts.export_gguf(run, tmp_path / f"{kind}.gguf", kind)
    tokens = ids[0].tolist()
    assert FACT in in_llama_cpp(tmp_path / "f16.gguf", tokens)
    assert FACT in in_llama_cpp(tmp_path / "q8_0.gguf", tokens)
    assert FACT in in_llama_cpp(tmp_path / "base.gguf", tokens, tmp_path / "adapter.gguf")
    assert FACT not in in_llama_cpp(tmp_path / "base.gguf", tokens)


def in_llama_cpp(model, prompt, adapter=None):
    """llama.cpp's answer to these token ids."""
    return answers_of(model, [prompt], 20, adapter)[0]
