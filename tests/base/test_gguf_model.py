"""Proves that a GGUF file becomes the very model it holds, or is refused in our own words; transformers reads less of it."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGUFValueType
from tests.export.tiny_bases import byte_level, phi3_tokenizer, save_base, save_run, sentencepiece
from transformers import AutoConfig, AutoModelForCausalLM

import tunesmith as ts
from tunesmith.base.catalog import from_gguf
from tunesmith.errors import ModelError
from tunesmith.export.gguf import write_model
from tunesmith.export.gguf_vocabulary import STOPS


def rope(kind, **settings):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **settings}}


LLAMA3 = rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
LONG = {"short_factor": [1 + i / 8 for i in range(8)], "long_factor": [2.0 + i for i in range(8)]}
BASES = {
    "as usual": ("llama", byte_level, {}),
    "llama 3": ("llama", byte_level, LLAMA3 | {"tie_word_embeddings": True}),
    "linear": ("llama", byte_level, rope("linear", factor=2.0)),
    "biases": ("llama", sentencepiece, {"attention_bias": True, "mlp_bias": True}),
    "heads of llama": ("mistral", sentencepiece, {"head_dim": 24, "sliding_window": None}),
    "heads of qwen2": ("qwen2", byte_level, {"head_dim": 32}),
    "heads of qwen3": ("qwen3", byte_level, {"head_dim": 32}),
    "yarn": ("qwen3", byte_level, rope("yarn", factor=4.0, original_max_position_embeddings=64) | {"head_dim": 128}),
    "window": ("phi3", phi3_tokenizer, {"sliding_window": 40}),
    "no window": ("phi3", phi3_tokenizer, {"sliding_window": None}),
    "half turned": ("phi3", phi3_tokenizer, rope("default", partial_rotary_factor=0.5)),
    "long": (
        "phi3", phi3_tokenizer,
        rope("longrope", **LONG) | {"original_max_position_embeddings": 64, "max_position_embeddings": 4096},
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of its own."""
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


def exported(folder, name="as usual"):
    """A base and the GGUF file that is written of it."""
    family, tokenizer, settings = BASES[name]
    base = save_base(folder / "base", family, tokenizer(), **settings)
    run = save_run(folder / "run", base, 0.0, load_in_4bit=False)
    ts.export_gguf(run, folder / "out.gguf", "f32")
    return base, folder / "out.gguf"


@pytest.mark.parametrize("name", BASES)
def test_a_file_is_the_model_it_was_written_of(tmp_path, name):
    base, file = exported(tmp_path, name)
    ids = torch.arange(3, 203)[None]
    kept, read = (AutoModelForCausalLM.from_pretrained(folder)(ids).logits for folder in (base, from_gguf(file)))
    torch.testing.assert_close(read, kept, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama 3", "long", "biases"])
def test_what_is_exported_from_a_file_holds_all_that_was_in_it(tmp_path, name):
    _, file = exported(tmp_path, name)
    ts.export_gguf(save_run(tmp_path / "again", file, 0.0, load_in_4bit=False), tmp_path / "again.gguf", "f32")
    first, second = ({t.name: t.data for t in gguf.GGUFReader(path).tensors} for path in (file, tmp_path / "again.gguf"))
    assert first.keys() == second.keys()
    for tensor in first:
        np.testing.assert_allclose(second[tensor], first[tensor], rtol=1e-5, err_msg=tensor)


def test_stop_tokens_that_the_base_file_does_not_name_are_named_in_what_is_exported(tmp_path):
    _, file = exported(tmp_path)
    session = ts.load(save_run(tmp_path / "again", file, 0.0)).session
    stops = [50, *session.stop_ids]
    write_model(session.model, session.renderer.tokenizer, stops, file, tmp_path / "again.gguf", "f32", lambda done, total: None)
    fields = gguf.GGUFReader(tmp_path / "again.gguf").fields
    assert [fields[key].contents() for key in STOPS[: len(stops)]] == stops


# ---- files that are refused


def changed(file, drop=(), more=(), **facts):
    """Another file like this one, without some tensors, with more of them (name and values), and other facts (value and type)."""
    reader, out = gguf.GGUFReader(file), file.with_name("changed.gguf")
    writer = gguf.GGUFWriter(out, reader.fields["general.architecture"].contents())
    told = {field.name: (field.contents(), *field.types[:1], *field.types[-1:]) for field in reader.fields.values()}
    told |= {key.replace("__", "."): (value, kind, GGUFValueType.STRING) for key, (value, kind) in facts.items()}
    for key, (value, kind, inner) in told.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            writer.add_key_value(key, value, kind, sub_type=inner if kind == GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        if tensor.name not in drop:
            writer.add_tensor(tensor.name, np.array(tensor.data))
    for tensor, values in more:
        writer.add_tensor(tensor, np.array(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


NUMBER, DECIMAL, TEXT, LIST = GGUFValueType.UINT32, GGUFValueType.FLOAT32, GGUFValueType.STRING, GGUFValueType.ARRAY
ODD = {
    "a tensor is missing": ({"drop": ["blk.1.ffn_up.weight"]}, r"has no model\.layers\.1\.mlp\.up_proj\.weight"),
    "heads of another size": ({"llama__attention__key_length": (8, NUMBER), "llama__rope__dimension_count": (8, NUMBER)},
        r"k_proj\.weight has the size 32 × 64, and it is 16 × 64 in the llama .* with heads of 8\."),
    "a tensor without a use": ({"more": [("blk.0.attn_q_norm.weight", [1] * 16)]}, "holds 16 numbers that transformers"),
    "biases of one layer": ({"more": [("blk.0.attn_q.bias", [1] * 64)]}, r"has no model\.layers\.0\.self_attn\.\w_proj\.bias"),
    "frequencies of their own": ({"more": [("rope_freqs.weight", range(1, 9))]}, r"rope_freqs\.weight is not as in Llama 3"),
    "other ways to stretch": ({"llama__rope__scaling__type": ("dynamic", TEXT)}, r"rope\.scaling\.type is dynamic"),
    "yarn of its own": (
        {"llama__rope__scaling__type": ("yarn", TEXT), "llama__rope__scaling__yarn_log_multiplier": (0.1, DECIMAL)},
        r"rope\.scaling\.type is yarn",
    ),
    "half turned": ({"llama__rope__dimension_count": (8, NUMBER)}, "8 of 16 numbers of a head are rotated"),
    "louder": ({"llama__rope__scaling__attn_factor": (3.0, DECIMAL)}, r"rope\.scaling\.attn_factor is 3"),
    "long without factors": (
        {"llama__rope__scaling__type": ("longrope", TEXT), "llama__rope__scaling__factor": (4.0, DECIMAL)},
        r"rope\.scaling\.type is longrope",
    ),
    "no heads": ({"llama__attention__head_count": (0, NUMBER)}, "cannot be read as a model"),
    "text for a number": ({"llama__block_count": ("two", TEXT)}, "cannot be read as a model: .*expected int, got str"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "says"), ODD.values(), ids=ODD)
def test_a_file_that_would_become_another_model_is_refused_in_our_own_words(tmp_path, cache, capfd, changes, says):
    _, file = exported(tmp_path)
    odd = changed(file, **changes)
    with pytest.raises(ModelError, match=says) as error:
        from_gguf(odd)
    assert str(odd) in error.value.what
    assert list(cache.iterdir()) == []
    assert "REPORT" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("given", "kind", "named"), [("tekken", TEXT, "'tekken'"), (["a", "b"], LIST, "['a', 'b']"), (3, NUMBER, "'3'")]
)
def test_a_split_that_is_not_known_is_told_whenever_the_file_is_used(tmp_path, given, kind, named):
    _, file = exported(tmp_path)
    odd, said = changed(file, tokenizer__ggml__pre=(given, kind)), list[str]()
    folder = from_gguf(odd, said.append)
    assert sum(named in line for line in said) == 1
    assert from_gguf(odd, said.append) == folder
    assert sum(named in line for line in said) == 2
    said.clear()
    from_gguf(file, said.append)
    from_gguf(file, said.append)
    assert [line.split()[0] for line in said] == ["Dequantising"]


@pytest.mark.parametrize(
    ("changes", "rope"),
    [
        ({"more": [("rope_freqs.weight", [1] * 8)]}, {"rope_type": "default"}),
        ({"llama__rope__scaling__type": ("none", TEXT), "llama__rope__scaling__factor": (4.0, DECIMAL)}, {"rope_type": "default"}),
        ({"llama__rope__scaling__type": ("yarn", TEXT)}, {"rope_type": "default"}),
        ({"llama__rope__scaling__factor": (4.0, DECIMAL)}, {"rope_type": "linear", "factor": 4.0}),
        ({"llama__rope__scale_linear": (4.0, DECIMAL)}, {"rope_type": "linear", "factor": 4.0}),
    ],
    ids=["divisors of one", "none", "yarn by nothing", "no type", "the old key"],
)
def test_what_a_file_leaves_unsaid_is_what_llama_cpp_takes_it_for(tmp_path, changes, rope):
    _, file = exported(tmp_path)
    read = AutoConfig.from_pretrained(from_gguf(changed(file, **changes))).rope_parameters
    assert read == {"rope_theta": 1e4, **rope}
