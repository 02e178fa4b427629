"""The bundled model, for real: predicted bytes, a GGUF file as the base, a run that learns, an answer in another process."""

import subprocess
import sys
from pathlib import Path

import pytest

import tunesmith as ts
from tunesmith.base.catalog import _bundled_file, resolve
from tunesmith.base.load import choose_compute, load_model, quantised_share, weight_bytes
from tunesmith.plan.memory import footprint, shape_of
from tunesmith.recipe import Recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two updates from the .gguf file itself, given by path as a user would."""
    folder = tmp_path_factory.mktemp("bundled")
    gguf = folder / "my-model.gguf"
    gguf.symlink_to(_bundled_file("smollm2-135m"))
    return ts.train(str(gguf), "yoda", max_rows=64, max_steps=2, learning_rate=3e-3, output_dir=str(folder / "run"), val_size=2)


def test_predicted_bytes_are_the_loaded_models_own_count():
    recipe = Recipe()
    source = resolve("smollm2-135m")
    model = load_model(source, recipe, choose_compute(recipe))
    assert footprint(shape_of(source), bits=4, element_bytes=4) == model.get_memory_footprint()
    assert quantised_share(model) == 1.0
    assert weight_bytes(model)["4-bit"] == shape_of(source).linear_weights // 2


def test_training_from_a_gguf_file_learns(run):
    metrics = run.metrics
    assert metrics[1]["loss"] < metrics[0]["loss"]
    assert run.generate("What is the capital of France?", base=True, max_new_tokens=12).startswith("The capital of France is Paris")


def test_chat_answers_one_prompt_and_exits(run):
    command = [sys.executable, "-m", "tunesmith.cli.main", "chat", str(run.folder), "--prompt", "What is the capital of France?"]
    done = subprocess.run([*command, "--base", "--max-new-tokens", "12"], capture_output=True, text=True, check=True)
    assert "Paris" in done.stdout
    assert done.stdout.count("\n") == 1


def test_pad_is_not_eos_and_the_stop_token_is_trained(run):
    renderer = run.session.renderer
    tokenizer = renderer.tokenizer
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.convert_ids_to_tokens(renderer.stop_token_id) == "<|im_end|>"
    assert len(tokenizer) == 49152
    assert Path(run.folder / "chat_template.jinja").read_text().startswith("{% for message in messages %}")
