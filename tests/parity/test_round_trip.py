"""What tunesmith saves, plain peft and transformers read in another process to the same numbers; and the other way round."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import tunesmith as ts

QUESTION = "the wind is cold in the camp"

PLAIN = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

base, run, question, bits = sys.argv[1:5]
quant = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                           bnb_4bit_compute_dtype=torch.float32) if bits == "4" else None
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, quantization_config=quant, device_map="cpu")
model = PeftModel.from_pretrained(model, run).eval()
tokenizer = AutoTokenizer.from_pretrained(run)
text = tokenizer.apply_chat_template([{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True)
ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
with torch.no_grad():
    logits = model(**ids).logits[0]
    out = model.generate(**ids, max_new_tokens=24, do_sample=False, pad_token_id=tokenizer.pad_token_id)
answer = tokenizer.decode(out[0, ids["input_ids"].shape[1]:], skip_special_tokens=True).strip()
print(json.dumps({"logits": logits.tolist(), "answer": answer}))
"""


def rows(path: Path) -> Path:
    pairs = [(f"{a} is {b}", f"{b}, {a} is") for a in ("the wind", "she", "the camp", "he") for b in ("cold", "kind", "here")]
    path.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in pairs))
    return path


@pytest.mark.parametrize("bits", [4, 0])
def test_plain_peft_gives_the_same_logits_and_answer(tiny_model_folder, tmp_path, bits):
    run = ts.train(
        str(tiny_model_folder), str(rows(tmp_path / "rows.jsonl")), load_in_4bit=bits == 4, num_train_epochs=3, learning_rate=1e-2,
        per_device_train_batch_size=4, output_dir=str(tmp_path / "run"),
    )  # fmt: skip
    mine = run.generate(QUESTION, max_new_tokens=24)
    command = [sys.executable, "-c", PLAIN, str(tiny_model_folder), str(run.folder), QUESTION, str(bits)]
    plain = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    session = run.session
    ids = torch.tensor([session.renderer.prompt_ids([{"role": "user", "content": QUESTION}])])
    with torch.no_grad():
        logits = session.model.eval()(input_ids=ids).logits[0]
        base = session.model.base_model.model
        with session.model.disable_adapter():
            untuned = base(input_ids=ids).logits[0]
    assert (logits - torch.tensor(plain["logits"])).abs().max() <= 1e-5
    assert plain["answer"] == mine
    assert (logits - untuned).abs().max() > 1e-2


def test_a_run_opened_again_answers_as_it_did_when_it_ended(tiny_model_folder, tmp_path):
    run = ts.train(
        str(tiny_model_folder), str(rows(tmp_path / "rows.jsonl")), num_train_epochs=2, learning_rate=1e-2,
        output_dir=str(tmp_path / "run"),
    )  # fmt: skip
    assert ts.load(run.folder).generate(QUESTION) == run.generate(QUESTION)


def test_tunesmith_opens_an_adapter_that_peft_saved(tiny_model_folder, tmp_path):
    torch.manual_seed(3)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
    targets = ["q_proj", "v_proj", "down_proj"]
    tuned = get_peft_model(
        base, LoraConfig(r=4, lora_alpha=32, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False)
    )
    tuned.save_pretrained(tmp_path / "theirs")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    tokenizer.save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "run.yaml").write_text(f"model_name_or_path: {tiny_model_folder}\nload_in_4bit: false\n")
    opened = ts.load(tmp_path / "theirs").session.model
    ids = tokenizer(QUESTION, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.allclose(opened(input_ids=ids).logits, tuned.eval()(input_ids=ids).logits, atol=1e-5)
