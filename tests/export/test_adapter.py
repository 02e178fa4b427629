"""Proves that a saved adapter is a folder plain peft reads, whole, without pickle, with the numbers it had."""

import hashlib
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tests.export.tiny_bases import save_base, sentencepiece
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.base.adapter import adapter_parameters, attach, open_adapter
from tunesmith.base.catalog import ModelSource, resolve
from tunesmith.base.lean import speed_up
from tunesmith.base.load import choose_compute, load_model
from tunesmith.base.tokenizer import load_tokenizer
from tunesmith.export.adapter import save_adapter
from tunesmith.export.card import write_card
from tunesmith.recipe import Recipe

IDS = torch.tensor([[1, 40, 7, 99, 250, 3, 18, 2]])
FILES = {
    "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "generation_config.json", "tokenizer.json",
    "tokenizer_config.json",
}  # fmt: skip


def tuned(folder: Path, seed: int = 1) -> Any:
    """A model on the fast path with an adapter that does something."""
    recipe = Recipe.of({"device": "cpu", "load_in_4bit": False, "lora_r": 4})
    base = load_model(resolve(str(folder)), recipe, choose_compute(recipe))
    model = attach(base, recipe, str(folder), None)
    speed_up(model, torch.float32, keep=True)
    torch.manual_seed(seed)
    for parameter in adapter_parameters(model).values():
        torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.fixture
def saved(tiny_model_folder: Path, tiny_tokenizer: Any, tmp_path: Path) -> tuple[Any, Path]:
    model = tuned(tiny_model_folder)
    save_adapter(model, tiny_tokenizer, [2], tmp_path / "run")
    return model, tmp_path / "run"


def test_the_folder_holds_exactly_what_others_read(saved: tuple[Any, Path]) -> None:
    assert {path.name for path in saved[1].iterdir()} == FILES


def test_there_is_no_pickle_in_it(saved: tuple[Any, Path]) -> None:
    for path in saved[1].iterdir():
        assert path.suffix in (".json", ".jinja", ".safetensors")
        head = path.read_bytes()[:4]
        assert head[:2] not in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05")


def test_plain_peft_loads_it_over_the_plain_base_with_equal_logits(saved: tuple[Any, Path], tiny_model_folder: Path) -> None:
    model, folder = saved
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32), folder)
    torch.testing.assert_close(logits(plain.eval()), logits(model), rtol=0, atol=1e-5)
    with model.disable_adapter():
        assert float((logits(plain) - logits(model)).abs().max()) > 0.01, "the adapter does nothing, so nothing was compared"


def loaded_as_the_card_says(folder: Path) -> Any:
    write_card(folder, "org/name", {})
    lines = (folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    made: dict[str, Any] = {}
    exec(lines.replace("PATH_OF_THIS_FOLDER", str(folder)), made)
    return made["model"].eval()


def test_the_lines_on_the_model_card_load_it(saved: tuple[Any, Path]) -> None:
    model, folder = saved
    torch.testing.assert_close(logits(loaded_as_the_card_says(folder)), logits(model), rtol=0, atol=1e-5)


def test_loaded_as_the_card_says_its_answers_end_where_they_were_taught_to_and_the_base_knows_nothing_of_it(
    saved: tuple[Any, Path], tiny_tokenizer: Any, tiny_model_folder: Path
) -> None:
    model, folder = saved
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    plain = PeftModel.from_pretrained(base, folder).eval()
    written = plain.generate(input_ids=IDS, max_new_tokens=8, do_sample=False, pad_token_id=0)[0, IDS.shape[1] :].tolist()
    stop = written[1]  # stands for the stop token
    assert stop not in (written[0], base.generation_config.eos_token_id)
    assert len(written) == 8, "the base itself would stop there"
    save_adapter(model, tiny_tokenizer, [stop], folder)
    ended = loaded_as_the_card_says(folder).generate(input_ids=IDS, max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert ended[0, IDS.shape[1] :].tolist() == written[:2]


def test_tunesmith_opens_it_with_equal_logits(saved: tuple[Any, Path], tiny_model_folder: Path) -> None:
    model, folder = saved
    recipe = Recipe.of({"device": "cpu", "load_in_4bit": False})
    again = open_adapter(load_model(resolve(str(tiny_model_folder)), recipe, choose_compute(recipe)), folder)
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=1e-5)


def test_opening_one_asks_nobody_about_its_base(saved: tuple[Any, Path], tiny_model_folder: Path) -> None:
    model, folder = saved
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "org/name"}))
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        opened = open_adapter(base, folder)
    assert not [one for one in told if "org/name" in str(one.message)], "peft says so where it could not look it up"
    torch.testing.assert_close(logits(opened), logits(model), rtol=0, atol=1e-5)


def test_it_holds_the_adapter_alone_in_float32(saved: tuple[Any, Path]) -> None:
    tensors = load_file(saved[1] / "adapter_model.safetensors")
    assert len(tensors) == 28
    assert all("lora_A" in name or "lora_B" in name for name in tensors)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_the_config_says_base_rank_and_targets(saved: tuple[Any, Path], tiny_model_folder: Path) -> None:
    config = json.loads((saved[1] / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_model_folder)
    assert (config["peft_type"], config["task_type"], config["r"]) == ("LORA", "CAUSAL_LM", 4)
    assert config["inference_mode"] is True
    assert len(config["target_modules"]) == 7
    assert config["auto_mapping"] is None, "a reader would look for our own classes"


def test_the_config_is_the_same_bytes_each_time(saved: tuple[Any, Path]) -> None:
    targets = json.loads((saved[1] / "adapter_config.json").read_text())["target_modules"]
    assert targets == sorted(targets), "a set's order changes from process to process, and the manifest's hash with it"


def test_the_tokenizer_in_it_is_the_one_that_was_trained_with(saved: tuple[Any, Path], tiny_tokenizer: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(saved[1])
    assert tokenizer.pad_token == tiny_tokenizer.pad_token != tokenizer.eos_token
    assert tokenizer.chat_template == tiny_tokenizer.chat_template
    assert tokenizer("The wind is cold.")["input_ids"] == tiny_tokenizer("The wind is cold.")["input_ids"]


def test_saving_twice_gives_the_same_weights_file(saved: tuple[Any, Path], tiny_tokenizer: Any, tmp_path: Path) -> None:
    save_adapter(saved[0], tiny_tokenizer, [2], tmp_path / "again")
    first, second = (
        hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest() for folder in (saved[1], tmp_path / "again")
    )
    assert first == second


def test_files_that_are_there_already_stay_and_old_weights_are_replaced(
    saved: tuple[Any, Path], tiny_model_folder: Path, tiny_tokenizer: Any
) -> None:
    folder = saved[1]
    (folder / "run.yaml").write_text("lora_r: 4\n")
    (folder / "README.md").write_text("mine")
    before = (folder / "adapter_model.safetensors").read_bytes()
    save_adapter(tuned(tiny_model_folder, seed=2), tiny_tokenizer, [2], folder)
    assert (folder / "adapter_model.safetensors").read_bytes() != before
    assert (folder / "README.md").read_text() == "mine"
    assert {path.name for path in folder.iterdir()} == FILES | {"run.yaml", "README.md"}


def test_a_folder_that_cannot_be_written_leaves_what_was_there(saved: tuple[Any, Path], tiny_model_folder: Path) -> None:
    class Broken:
        def save_pretrained(self, folder: str) -> None:
            raise OSError("disk full")

    before = {path.name: path.read_bytes() for path in saved[1].iterdir()}
    with pytest.raises(OSError, match="disk full"):
        save_adapter(tuned(tiny_model_folder, seed=2), Broken(), [2], saved[1])
    assert {path.name: path.read_bytes() for path in saved[1].iterdir()} == before


def test_an_adapter_moves_with_its_folder(saved: tuple[Any, Path], tiny_model_folder: Path, tmp_path: Path) -> None:
    moved = shutil.move(saved[1], tmp_path / "elsewhere")
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32), moved)
    torch.testing.assert_close(logits(plain.eval()), logits(saved[0]), rtol=0, atol=1e-5)


def test_the_tokenizer_beside_it_puts_spaces_as_the_one_that_was_trained_with(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", "llama", sentencepiece())
    told = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(told | {"tokenizer_class": "LlamaTokenizer", "legacy": True}))
    trained_with = load_tokenizer(resolve(str(base)))
    assert trained_with.tokenize("<s>the</s>the")[1].startswith("\u2581"), "a space is put behind every special token"
    trained_with.save_pretrained(tmp_path / "run")
    again = load_tokenizer(ModelSource(str(tmp_path / "run"), None, "run"))
    assert again.tokenize("<s>the</s>the") == trained_with.tokenize("<s>the</s>the")
