"""Proves with llama.cpp itself that a base which did not come as GGUF becomes the same model there: same answers to the same
tokens, same tokens of the same texts, and it stops. What llama.cpp computes otherwise is refused."""

import gguf
import numpy as np
import pytest
import torch
from tests.export.tiny_bases import TEXTS, byte_level, phi3_tokenizer, save_base, save_run, sentencepiece
from tests.llama_cpp import ask, continued, serve, tokenised
from tokenizers import normalizers
from transformers import AutoTokenizer

import tunesmith as ts
from tunesmith.base.catalog import resolve
from tunesmith.base.gguf_split import split_as_named
from tunesmith.errors import AdapterError, ModelError
from tunesmith.export.gguf import write_model
from tunesmith.generate.engine import Sampling, generate
from tunesmith.generate.session import QUESTIONS

TALK = [[{"role": "user", "content": text}] for text in ("Strong in you, the Force is.", "Listen!", "你好 2024 👍🏽")]


def rope(kind, **settings):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, "original_max_position_embeddings": 64, **settings}}


BASES = {
    "llama-3": (
        "llama", lambda: byte_level("llama-bpe", whole=True),
        rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0) | {"tie_word_embeddings": True},
    ),
    "llama-2": ("llama", sentencepiece, {"attention_bias": True, "mlp_bias": True, "head_dim": 32}),
    "smollm": ("llama", lambda: byte_level("smollm"), rope("linear", factor=2.0)),
    "mistral": ("mistral", lambda: sentencepiece(scheme="first"), {"head_dim": 24, "sliding_window": 128}),
    "qwen2": ("qwen2", lambda: byte_level("qwen2", normalizers.NFC()), {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", lambda: byte_level("qwen2", normalizers.NFC()), rope("yarn", factor=4.0) | {"head_dim": 32}),
    "phi-3": ("phi3", phi3_tokenizer, {"sliding_window": 200}),
    "phi-3-long": (
        "phi3", phi3_tokenizer,
        rope(
            "longrope", short_factor=[1 + i / 10 for i in range(8)], long_factor=[2.0 + i for i in range(8)],
            original_max_position_embeddings=1024,
        ) | {"max_position_embeddings": 4096},
    ),
    "phi-4": ("phi3", lambda: byte_level("dbrx"), rope("default", partial_rotary_factor=0.5) | {"tie_word_embeddings": True}),
    "of its own": ("llama", lambda: byte_level("gpt-2"), {}),
}  # fmt: skip


@pytest.fixture(scope="module", params=list(BASES))
def made(request, tmp_path_factory):
    """A run over a tiny base of each kind: its session, its folder, and llama.cpp with the exported file."""
    family, tokenizer, settings = BASES[request.param]
    folder = tmp_path_factory.mktemp("folder")
    run = save_run(folder / "run", save_base(folder / "base", family, tokenizer(), **settings))
    ts.export_gguf(run, folder / "out.gguf", "f32", ollama=True)
    return ts.load(run).session, run, serve(folder / "out.gguf")


def ours(session, prompts, tokens, base=False):
    pad = session.renderer.tokenizer.pad_token_id
    return generate(session.model, prompts, session.stop_ids, pad, Sampling(tokens), base=base)


def test_greedy_tokens_are_the_live_adapters(made):
    session, _, server = made
    prompts = [session.renderer.prompt_ids(talk) for talk in TALK]
    assert [tokens for tokens, _ in continued(server, prompts, 24)] == ours(session, prompts, 24)


def test_texts_become_the_same_tokens(made):
    session, _, server = made
    tokenizer = session.renderer.tokenizer
    begin = tokenizer.all_special_tokens[0]
    texts = [begin + text for text in (*TEXTS, f"typed {begin}control{tokenizer.eos_token} tokens\n{begin} <think>")]
    assert tokenised(server, texts) == [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def test_a_conversation_becomes_the_same_prompt(made):
    session, _, server = made
    prompts = [ask(server, "/apply-template", messages=talk)["prompt"] for talk in TALK]
    assert tokenised(server, prompts, begin=True) == [session.renderer.prompt_ids(talk) for talk in TALK]


def test_the_file_is_itself_a_base_that_reads_text_as_before(made):
    """transformers does not split text as the file says; see base/gguf_split.py."""
    session, run, _ = made
    if session.renderer.tokenizer.backend_tokenizer.model.byte_fallback:
        pytest.skip("not byte-level BPE")
    read = AutoTokenizer.from_pretrained(run.parent, gguf_file="out.gguf")
    assert split_as_named(read, run.with_name("out.gguf")) is None
    for text in TEXTS:
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for tokenizer in (session.renderer.tokenizer, read)]
        assert ids[0] == ids[1], text


def test_ollama_is_told_of_the_same_stop_tokens_and_of_the_template_where_its_language_can_say_it(made):
    session, run, _ = made
    told = run.with_name("Modelfile").read_text()
    assert told.startswith("FROM ./out.gguf\n")
    ends = [session.renderer.tokenizer.convert_ids_to_tokens(stop) for stop in session.stop_ids]
    assert [line for line in told.splitlines() if line.startswith("PARAMETER stop")] == [f'PARAMETER stop "{end}"' for end in ends]
    assert f"\nPARAMETER num_ctx {min(session.context, 4096)}\n" in told
    assert ("TEMPLATE" in told) == ("[INST]" not in session.renderer.tokenizer.chat_template)


def test_every_stop_token_ends_an_answer(made, tmp_path):
    session, _, server = made
    prompt = session.renderer.prompt_ids(TALK[0])
    [(tokens, _)] = continued(server, [prompt], 24)
    usual, end = session.stop_ids[0], tokens[1]
    others = [token for token in range(40, 80) if token not in (usual, *tokens)]
    for place, stops in enumerate(([end, usual], [usual, end], [usual, *others[:4], end])):
        file = tmp_path / f"{place}.gguf"
        write_model(session.model, session.renderer.tokenizer, stops, None, file, "f32", lambda done, total: None)
        assert continued(serve(file), [prompt], 24) == [(tokens[: tokens.index(end) + 1], True)]


@pytest.mark.parametrize(("kind", "stored"), [("f16", "F16"), ("q8_0", "Q8_0"), ("base", "F16")])
def test_other_kinds_are_the_same_model_in_fewer_bits(made, tmp_path, kind, stored):
    session, run, _ = made
    ts.export_gguf(run, tmp_path / "small.gguf", kind)
    types = {tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "small.gguf").tensors}
    assert stored in types
    assert types <= {"F32", "F16", stored}
    prompts = [session.renderer.prompt_ids(talk) for talk in TALK]
    said = continued(serve(tmp_path / "small.gguf"), prompts, 4)
    same = sum(tokens == mine for (tokens, _), mine in zip(said, ours(session, prompts, 4, base=kind == "base")))
    assert same >= (2 if stored == "F16" else 1), "random weights leave near ties"


def facts(file):
    return {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items() if not name.startswith("GGUF.")}


@pytest.fixture(scope="module")
def bundled(tmp_path_factory):
    """The bundled model by its GGUF file and as a folder, under the same adapter, exported both ways; and a session."""
    folder = tmp_path_factory.mktemp("bundled")
    for name, base in (("file", "smollm2-135m"), ("folder", resolve("smollm2-135m").path)):
        ts.export_gguf(save_run(folder / name, base, 0.02), folder / f"{name}.gguf", "f16")
    return folder / "file.gguf", folder / "folder.gguf", ts.load(folder / "folder").session


def test_a_folder_gives_the_weights_and_the_metadata_that_its_gguf_file_gives(bundled):
    by_file, by_folder, _ = bundled
    left, right = gguf.GGUFReader(by_file), gguf.GGUFReader(by_folder)
    for one, other in zip(sorted(left.tensors, key=lambda t: t.name), sorted(right.tensors, key=lambda t: t.name), strict=True):
        assert one.name == other.name
        np.testing.assert_array_equal(one.data, other.data, err_msg=one.name)
    told, mine = facts(by_file), facts(by_folder)
    described = {name for name in told if name.startswith("general.")} - {"general.architecture", "general.file_type"}
    assert told.keys() - mine.keys() <= described
    different = {name for name in told.keys() & mine.keys() if told[name] != mine[name]} - described
    assert different == {"tokenizer.ggml.padding_token_id"}, "padding is no longer EOS"


def test_a_real_models_texts_become_the_same_tokens(bundled):
    _, by_folder, session = bundled
    tokenizer = session.renderer.tokenizer
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert tokenised(serve(by_folder), TEXTS) == expected


def test_a_merged_folder_as_base_gives_the_answers_of_the_gguf_base(bundled, tmp_path):
    by_file, _, session = bundled
    ts.merge(by_file.with_name("file"), tmp_path / "merged", "float32")
    nothing = save_run(tmp_path / "nothing", tmp_path / "merged", 0.0, load_in_4bit=False)
    ts.export_gguf(nothing, tmp_path / "out.gguf", "f16")
    prompts = [session.renderer.prompt_ids([{"role": "user", "content": text}]) for text in QUESTIONS[:4]]
    assert continued(serve(tmp_path / "out.gguf"), prompts, 16) == continued(serve(by_file), prompts, 16)


def test_two_tensors_of_one_name_are_refused_before_one_is_lost(tmp_path):
    run = save_run(tmp_path / "run", save_base(tmp_path / "base", "llama", byte_level()))
    model = ts.load(run).session.model
    old = torch.nn.Module()
    old.wte = torch.nn.Embedding(4, 64)
    model.get_base_model().transformer = old  # GPT-2's name of the embedding
    with pytest.raises(AdapterError, match=r"have one name in a GGUF file, token_embd\.weight") as error:
        write_model(model, None, [2], None, tmp_path / "out.gguf", "f32", lambda done, total: None)
    assert "model.embed_tokens.weight" in error.value.what
    assert not (tmp_path / "out.gguf").exists()


def refused(tmp_path, family, tokenizer, **settings):
    run = save_run(tmp_path / "run", save_base(tmp_path / "base", family, tokenizer, **settings))
    with pytest.raises(ModelError) as error:
        ts.export_gguf(run, tmp_path / "out.gguf")
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []
    assert "--type adapter" in error.value.fix or "tunesmith merge" in error.value.fix
    return error.value.what


def test_a_family_that_is_not_covered_is_named_with_those_that_are(tmp_path):
    what = refused(tmp_path, "gemma2", byte_level(), head_dim=16)
    assert "type gemma2" in what
    assert "llama, mistral, phi3, qwen2, qwen3" in what


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"hidden_act": "gelu"}, "gelu"),
        (rope("dynamic", factor=4.0), "type dynamic"),
        (rope("yarn", factor=4.0, attention_factor=3.0), "attention_factor 3.0"),
    ],
    ids=["activation", "rope", "yarn"],
)
def test_what_llama_cpp_does_not_compute_is_named(tmp_path, settings, named):
    assert named in refused(tmp_path, "llama", byte_level(), **settings)
