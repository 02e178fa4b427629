"""Proves that a model reference means what the user thinks, and that nothing unsafe or half-there passes for a model."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.base.catalog import BUNDLED, cache_dir, from_gguf, resolve
from tunesmith.errors import ModelError


@pytest.fixture
def copy(tiny_model_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may spoil."""
    return shutil.copytree(tiny_model_folder, tmp_path / "copy")


# ---- hub ids


@pytest.mark.parametrize(
    ("reference", "path", "revision"),
    [
        ("org/name", "org/name", None),
        ("org/name@main", "org/name", "main"),
        ("org/name@v1.0", "org/name", "v1.0"),
        ("org/name@refs/pr/3", "org/name", "refs/pr/3"),
        ("gpt2", "gpt2", None),
        ("org/name@", "org/name", None),
    ],
)
def test_a_hub_id_passes_through_with_its_revision(reference: str, path: str, revision: str | None) -> None:
    source = resolve(reference)
    assert (source.path, source.revision, source.base) == (path, revision, path)


HUB_SCRIPT = """
import json, sys, torch
from tunesmith.base.catalog import resolve
from tunesmith.base.load import choose_compute, load_model
from tunesmith.base.tokenizer import load_tokenizer
from tunesmith.errors import ModelError
from tunesmith.plan.memory import shape_of
from tunesmith.recipe import Recipe
recipe, said = Recipe.of({"load_in_4bit": False}), {}
for reference in sys.argv[1:]:
    source = resolve(reference)
    try:
        hidden = shape_of(source).hidden
        load_tokenizer(source)
        model = load_model(source, recipe, choose_compute(recipe))
        said[reference] = [hidden, float(model.get_input_embeddings().weight.sum())]
    except ModelError as error:
        said[reference] = error.what
print(json.dumps(said))
"""


def test_a_hub_id_is_loaded_from_the_local_hub_cache_at_its_revision(tiny_model_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    repo = tmp_path / "hub" / "models--org--name"
    first, second = "1" * 40, "2" * 40
    shutil.copytree(tiny_model_folder, repo / "snapshots" / first)
    shutil.copytree(tiny_model_folder, repo / "snapshots" / second)
    weights = load_file(tiny_model_folder / "model.safetensors")
    other = {name: tensor + 1 if "embed" in name else tensor for name, tensor in weights.items()}
    save_file(other, repo / "snapshots" / second / "model.safetensors", metadata={"format": "pt"})
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(first)
    (repo / "refs" / "v2").write_text(second)

    references = ["org/name", "org/name@v2", f"org/name@{second}", "org/name@v3", "org/other"]
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", HUB_SCRIPT, *references], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])

    embedding = weights["model.embed_tokens.weight"]
    assert said["org/name"] == [64, pytest.approx(float(embedding.sum()), abs=1e-2)]
    assert said["org/name@v2"] == [64, pytest.approx(float((embedding + 1).sum()), abs=1)]
    assert said[f"org/name@{second}"] == said["org/name@v2"]
    for missing in ("org/name@v3", "org/other"):
        assert said[missing].startswith(f"There is no model {missing.partition('@')[0]}")


# ---- folders


def test_a_model_folder_is_itself(tiny_model_folder: Path) -> None:
    source = resolve(str(tiny_model_folder))
    assert (source.path, source.revision, source.base) == (str(tiny_model_folder), None, str(tiny_model_folder))


def test_a_folder_here_wins_over_a_bundled_model_of_the_same_name(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy.parent)
    copy.rename(copy.parent / "smollm2-135m")
    assert resolve("smollm2-135m").path == "smollm2-135m"


@pytest.mark.parametrize("reference", ["./none", "/none/at/all", "~/none-at-all", "a/b/c"])
def test_a_path_that_is_not_there_is_not_taken_for_a_hub_id(
    reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="There is no folder"):
        resolve(reference)


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("", "has no name"),
        ("  ", "has no name"),
        ("@v1", r"@v1 names a revision of no model\. Write a hub id before it: user/name@v1"),
        (" @v1", "names a revision of no model"),
        ("@", "names a revision of no model"),
        ("copy@v1", r"copy is on this machine, where it has none\. Leave @v1 out"),
        ("./copy@v1", "where it has none"),
        ("copy@", "Leave @ out"),
        ("copy/config.json@v1", "where it has none"),
        ("smollm2-135m@v1", "where it has none"),
        ("org/name/", r"no folder org/name/\. Check the path; or if it is a hub id: org/name$"),
        ("smollm2-135m/", "or if it is a hub id: smollm2-135m$"),
        ("a/b/c/", r"no folder a/b/c/\. Check the path\.$"),
        ("org/name@v1/", "There is no folder org/name@v1/"),
        ("https://huggingface.co/org/name/tree/main", "is an address, .*: org/name$"),
        ("hf://org/name", "is an address, .*: org/name$"),
        ("https://example.org/m", "is an address, .*: user/name$"),
        ("~nobody-of-that-name", "There is no folder ~nobody"),
        ("Why is it that the wind is cold? " * 9, r"No name is as long as Why is it .*… \(297 characters\)"),
    ],
)
def test_what_can_be_no_model_is_told_for_what_it_is(
    copy: Path, monkeypatch: pytest.MonkeyPatch, reference: str, says: str
) -> None:
    monkeypatch.chdir(copy.parent)
    with pytest.raises(ModelError, match=says):
        resolve(reference)


def test_a_revision_alone_does_not_mean_the_folder_one_is_in(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy)
    with pytest.raises(ModelError, match="a revision of no model"):
        resolve("@v1")
    assert resolve(".").path == "."


def test_a_folder_with_an_at_sign_in_its_name_is_that_folder(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy.parent)
    copy.rename(copy.parent / "copy@v1")
    assert resolve("copy@v1").path == "copy@v1"


def test_an_adapter_folder_is_refused_with_the_way_to_use_it(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="an adapter, not a base model") as caught:
        resolve(str(tmp_path))
    assert "tunesmith chat" in caught.value.fix


def test_a_folder_of_gguf_files_is_refused_with_the_file_to_give(tmp_path: Path) -> None:
    (tmp_path / "m.Q4.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"no config\.json") as caught:
        resolve(str(tmp_path))
    assert str(tmp_path / "m.Q4.gguf") in caught.value.fix


@pytest.mark.parametrize(
    ("name", "says"),
    [("rows.jsonl", "is data, and"), ("notes.txt", "not a .gguf model"), ("config.json", "Name its folder")],
)
def test_a_file_that_is_no_model_is_named_for_what_it_is(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(ModelError, match=says):
        resolve(str(tmp_path / name))


def test_an_empty_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a model folder"):
        resolve(str(tmp_path))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt", "model.ckpt", "weights.pkl"])
def test_pickled_weights_alone_are_refused(copy: Path, name: str) -> None:
    (copy / "model.safetensors").rename(copy / name)
    with pytest.raises(ModelError, match=f"only as pickles .{name}.") as caught:
        resolve(str(copy))
    assert ".safetensors" in caught.value.fix


def test_pickled_weights_beside_safe_ones_are_left_alone(copy: Path) -> None:
    (copy / "pytorch_model.bin").write_bytes(b"never opened")
    assert resolve(str(copy)).path == str(copy)


def test_a_folder_without_weights_is_refused(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no \.safetensors weights"):
        resolve(str(copy))


@pytest.mark.parametrize(
    "shard", ["pytorch_model-00001.bin", "../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..", ""]
)
def test_an_index_that_names_anything_but_a_safetensors_file_beside_it_is_refused(copy: Path, shard: str) -> None:
    (copy.parent / "x.safetensors").write_bytes(b"")
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": shard}}))
    with pytest.raises(ModelError, match=r"not a \.safetensors file beside it") as caught:
        resolve(str(copy))
    assert repr(shard) in caught.value.what


def test_an_index_whose_shard_is_missing_is_refused(copy: Path) -> None:
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))
    with pytest.raises(ModelError, match=r"misses model-2\.safetensors"):
        resolve(str(copy))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', "\x00"])
def test_an_index_that_cannot_be_read_is_refused(copy: Path, text: str) -> None:
    (copy / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match="not a valid index"):
        resolve(str(copy))


def test_a_good_index_passes(copy: Path) -> None:
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    assert resolve(str(copy)).path == str(copy)


# ---- files


def test_a_file_of_weights_is_refused_with_the_folder_to_name(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=rf"is one file of a model\. Name its folder: {tmp_path}"):
        resolve(str(tmp_path / "model.safetensors"))


def test_a_missing_gguf_file_names_the_nearest_one_beside_it(tmp_path: Path) -> None:
    (tmp_path / "tiny.Q4_1.gguf").write_bytes(b"")
    with pytest.raises(ModelError, match=r"did you mean tiny\.Q4_1\.gguf"):
        resolve(str(tmp_path / "tiny.Q4_0.gguf"))


def test_a_file_of_data_that_is_not_there_is_not_called_data(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("")
    (tmp_path / "rowz").mkdir()
    with pytest.raises(ModelError, match=r"There is no file .*rowz\.jsonl \(did you mean rows\.jsonl\?\)"):
        resolve(str(tmp_path / "rowz.jsonl"))


def test_a_folder_that_is_not_there_names_the_nearest_folder_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "model1").mkdir()
    (tmp_path / "model2x").write_text("")
    with pytest.raises(ModelError, match=r"There is no folder .*model2 \(did you mean model1\?\)"):
        resolve(str(tmp_path / "model2"))


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04 a zip", b"gguf" + bytes(100)])
def test_a_gguf_file_that_is_none_is_refused_and_leaves_nothing_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ModelError, match="not a GGUF file"):
        from_gguf(tmp_path / "m.gguf")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("content", [b"GGUF", b"GGUF" + bytes(64), b"GGUF\x03\x00\x00\x00" + b"\xff" * 64])
def test_a_damaged_gguf_file_is_refused_and_leaves_no_half_made_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ModelError, match="is not a whole GGUF file"):
        from_gguf(tmp_path / "m.gguf")
    assert list((tmp_path / "cache" / "gguf").iterdir()) == []


def test_the_bundled_model_is_found_and_names_the_hub_model_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(Path.home() / ".cache" / "tunesmith"))
    resolve("smollm2-135m")
    said: list[str] = []
    source = resolve("smollm2-135m", said.append)
    assert said == [], "it was converted a second time"
    assert source.base == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert source.revision is None
    names = {path.name for path in Path(source.path).iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert json.loads((Path(source.path) / "config.json").read_text())["hidden_size"] == 576


def test_every_bundled_model_says_package_file_and_hub_id() -> None:
    for package, file, hub in BUNDLED.values():
        assert package
        assert file.endswith(".gguf")
        assert hub.count("/") == 1


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("TUNESMITH_CACHE")
    assert cache_dir() == Path.home() / ".cache" / "tunesmith"
