"""Proves with llama.cpp itself that exported files answer as the live adapter does, and that nothing is written by mistake."""

import json
import shutil

import gguf
import numpy as np
import pytest
import yaml
from tests.export.tiny_bases import save_run
from tests.llama_cpp import answers_of

import tunesmith as ts
from tunesmith.errors import RunError
from tunesmith.export.ollama import context_length, modelfile
from tunesmith.generate.engine import Sampling, generate
from tunesmith.generate.session import QUESTIONS

TOKENS = 10


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("gguf") / "run", "smollm2-135m", 0.02)


@pytest.fixture(scope="module")
def answers(run):
    """Prompts as token ids, and the beginnings of the live adapter's answers."""
    session = ts.load(run).session
    prompts = [session.renderer.prompt_ids([{"role": "user", "content": text}]) for text in QUESTIONS[:5]]
    tokens = generate(session.model, prompts, session.stop_ids, session.renderer.tokenizer.pad_token_id, Sampling(TOKENS))
    return prompts, [session.renderer.tokenizer.decode(ids, skip_special_tokens=True) for ids in tokens]


@pytest.fixture(scope="module")
def merged(run):
    """The merged model in 16 bits."""
    file = run.with_name("merged.gguf")
    ts.export_gguf(run, file, "f16")
    return file


def test_the_merged_model_answers_in_llama_cpp_as_the_live_adapter_does(merged, answers):
    prompts, expected = answers
    assert answers_of(merged, prompts, TOKENS) == expected


def test_a_name_by_which_no_program_knows_such_a_file_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"does not end in \.gguf, .* Name it .*/out\.gguf$"):
        ts.export_gguf("no-run", tmp_path / "out")
    with pytest.raises(RunError, match="There is no run"):
        ts.export_gguf("no-run", tmp_path / "OUT.GGUF")


def test_in_8_bits_nearly_all_answers_are_the_same(run, answers, tmp_path):
    size = ts.export_gguf(run, tmp_path / "out.gguf", "q8_0")
    assert size < 160e6
    prompts, expected = answers
    got = answers_of(tmp_path / "out.gguf", prompts, TOKENS)
    assert sum(a == b for a, b in zip(got, expected)) >= 3, "a random adapter leaves many near ties"


def test_the_adapter_alone_over_the_exported_base_answers_so_too(run, answers, tmp_path):
    ts.export_gguf(run, tmp_path / "adapter.gguf", "adapter")
    ts.export_gguf(run, tmp_path / "base.gguf", "base")
    prompts, expected = answers
    assert answers_of(tmp_path / "base.gguf", prompts, TOKENS, tmp_path / "adapter.gguf") == expected
    assert answers_of(tmp_path / "base.gguf", prompts, TOKENS) != expected, "the adapter changes something"


def test_metadata_is_the_base_files_own_but_for_template_and_type(merged):
    from tunesmith.base.catalog import gguf_file

    mine, base = gguf.GGUFReader(merged), gguf.GGUFReader(gguf_file("smollm2-135m"))
    changed = {"tokenizer.chat_template", "general.file_type", "general.quantization_version"}
    for name, field in base.fields.items():
        if not name.startswith(("GGUF.", "quantize.")) and name not in changed:
            assert mine.fields[name].contents() == field.contents(), name
    assert {t.name for t in mine.tensors} == {t.name for t in base.tensors}


@pytest.mark.parametrize("family", ["qwen2", "phi3", "gemma2", "mistral"])
def test_an_adapter_of_any_known_family_has_a_name_for_every_tensor(tiny_model_folder, tmp_path, family):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    sizes = {
        "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
    }  # fmt: skip
    AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes)).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tiny_model_folder).save_pretrained(tmp_path / "base")
    run = save_run(tmp_path / "run", str(tmp_path / "base"), 0.1, lora_r=4, lora_alpha=12)
    ts.export_gguf(run, tmp_path / "adapter.gguf", "adapter")
    reader = gguf.GGUFReader(tmp_path / "adapter.gguf")
    names = {t.name for t in reader.tensors}
    linears = 4 if family == "phi3" else 7
    assert len(names) == 2 * 2 * linears
    assert all(name.startswith("blk.") and name.endswith((".weight.lora_a", ".weight.lora_b")) for name in names)
    assert reader.fields["adapter.lora.alpha"].contents() == 12


def test_rows_of_llamas_queries_stand_in_ggufs_order(tiny_model_folder, tmp_path):
    from safetensors.torch import load_file

    run = save_run(tmp_path / "run", str(tiny_model_folder), 0.1)
    ts.export_gguf(run, tmp_path / "adapter.gguf", "adapter")
    written = {t.name: np.array(t.data) for t in gguf.GGUFReader(tmp_path / "adapter.gguf").tensors}
    saved = load_file(run / "adapter_model.safetensors")
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    config = json.loads((tiny_model_folder / "config.json").read_text())
    heads = config["num_attention_heads"]
    B = saved[key].numpy()
    half = B.shape[0] // heads // 2
    order = [h * 2 * half + part * half + i for h in range(heads) for i in range(half) for part in range(2)]
    np.testing.assert_array_equal(written["blk.0.attn_q.weight.lora_b"], B[order])


def test_a_file_that_is_there_is_left_alone(run, tmp_path):
    (tmp_path / "out.gguf").write_text("mine")
    with pytest.raises(RunError, match="is there already"):
        ts.export_gguf(run, tmp_path / "out.gguf", "adapter")
    (tmp_path / "Modelfile").write_text("mine")
    with pytest.raises(RunError, match="Modelfile is there already"):
        ts.export_gguf(run, tmp_path / "other.gguf", "adapter", ollama=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Modelfile", "out.gguf"]


def test_a_modelfile_lets_ollama_see_the_longest_row_that_the_run_was_trained_on(run, tmp_path):
    long = shutil.copytree(run, tmp_path / "long")
    recipe = yaml.safe_load((long / "run.yaml").read_text())
    (long / "run.yaml").write_text(yaml.safe_dump(recipe | {"max_length": 5000}))
    ts.export_gguf(long, tmp_path / "out.gguf", "adapter", ollama=True)
    assert "\nPARAMETER num_ctx 6024\n" in (tmp_path / "Modelfile").read_text()


def _render(turn, end, system="", begin=""):
    def render(messages):
        first = [{"role": "system", "content": system}] if system and messages[0]["role"] != "system" else []
        return begin + "".join(turn.format(**message) for message in [*first, *messages]) + end

    return render


CHATML = "<|im_start|>{role}\n{content}<|im_end|>\n", "<|im_start|>assistant\n"


def test_a_modelfile_says_template_default_system_prompt_stops_and_that_answers_are_those_of_chat():
    text = modelfile("m.gguf", _render(*CHATML, system="Be kind."), "<|im_start|>", ["<|im_end|>"], 5000)
    assert text.startswith("FROM ./m.gguf\n")
    turn = "<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n"
    assert f'TEMPLATE """{{{{ range .Messages }}}}{turn}{{{{ end }}}}<|im_start|>assistant\n"""' in text
    assert 'SYSTEM """Be kind."""' in text
    assert 'PARAMETER stop "<|im_end|>"' in text
    assert "\nPARAMETER num_ctx 5000\n" in text
    assert "\nPARAMETER temperature 0\n" in text
    assert text.endswith("\nPARAMETER repeat_penalty 1\n")


@pytest.mark.parametrize(
    ("longest_row", "positions", "context"),
    [(64, 131_072, 4096), (None, 131_072, 4096), (8000, 131_072, 9024), (64, 2048, 2048), (8000, 8192, 8192), (3500, 2**31, 4524)],
)
def test_ollama_lets_the_model_see_the_longest_row_and_an_answer_and_no_more_than_it_can(longest_row, positions, context):
    assert context_length(longest_row, positions) == context


def test_a_template_ollamas_language_cannot_say_is_left_to_the_file():
    text = modelfile("m.gguf", _render(*CHATML, begin="<s>"), "<s>", [], 4096)
    assert "TEMPLATE" in text
    assert "SYSTEM" not in text

    def numbered(messages):
        return "".join(f"[{i}] {m['role']}: {m['content']}\n" for i, m in enumerate(messages)) + "assistant:"

    assert "TEMPLATE" not in modelfile("m.gguf", numbered, "", ["\n"], 4096)
