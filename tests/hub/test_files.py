"""Proves that only files of the list go, that what must not be published is found in all of them, and what is cut from them."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import RunError
from tunesmith.export.hub_files import local_name
from tunesmith.export.hub_scan import scan, scan_file, without_places
from tunesmith.export.publish import prepare


def names(parcel: Any) -> list[str]:
    return [file.name for file in parcel.files]


def test_only_what_is_on_the_list_goes_and_the_rest_is_named_with_the_reason(run: Path) -> None:
    parcel = prepare(run, "me/yoda")
    assert parcel.kind == "adapter"
    assert names(parcel) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "generation_config.json",
        "metrics.jsonl", "run.yaml", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert set(parcel.stays) == {
        ".env", "training_args.bin", "rows.jsonl", "report.html", "checkpoints", "manifest.json",
    }  # fmt: skip
    assert parcel.stays["training_args.bin"] == "a pickle: opening it can run any code"
    assert parcel.stays["report.html"] == "it shows rows of your data"
    assert not parcel.findings


def test_every_file_of_the_run_goes_or_stays(run: Path) -> None:
    parcel = prepare(run, "me/yoda")
    assert {*names(parcel), *parcel.stays} == {path.name for path in run.iterdir()} | {"README.md"}


SECRETS = [
    "hf_" + "aB3" * 11 + "x", "AKIAABCDEFGHIJKLMNOP", "aws_secret_access_key = " + "a1/" * 13 + "b",
    "-----BEGIN RSA PRIVATE KEY-----",
    "-----BEGIN PRIVATE KEY-----", "ghp_" + "a1" * 18, "github_pat_" + "a1" * 20, "glpat-" + "a1" * 10, "xoxb-123456789012-abc",
    "AIza" + "a1_-b" * 7, "sk-" + "a1" * 24, "sk-proj-" + "a1" * 24, "sk-ant-api03-" + "a1" * 24,
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcdefghijklmnop", "https://user:secretpw@host/x", "WANDB_API_KEY=0123456789abcdef",
]  # fmt: skip


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_is_found_with_its_line_and_not_shown(secret: str) -> None:
    (finding,) = scan("run.yaml", f"a: 1\nb: 'x {secret}'\n")[:1]
    assert (finding.file, finding.line) == ("run.yaml", 2)
    assert str(finding).startswith("run.yaml, line 2: ")
    assert secret not in str(finding)


@pytest.mark.parametrize("name", ["chat_template.jinja", "metrics.jsonl", "run.yaml", "tokenizer.json", "tokenizer_config.json"])
def test_every_text_that_goes_is_scanned(run: Path, name: str) -> None:
    text = (run / name).read_text()
    line = "#" if name == "run.yaml" else ""
    change = {"tokenizer_config.json": json.dumps({"note": SECRETS[0]})}.get(name, f"{text}\n{line}{SECRETS[0]}")
    (run / name).write_text(change)
    if name == "run.yaml":  # comments do not go; values do
        (run / name).write_text(text.replace("prompt: null", f"prompt: {SECRETS[0]}"))
    assert [finding.file for finding in prepare(run, "me/yoda").findings] == [name]


def test_what_stands_in_the_metadata_of_weights_is_found(tmp_path: Path) -> None:
    header = json.dumps({"__metadata__": {"from": "/home/ann/secret-project"}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    (finding,) = scan_file(path)
    assert (finding.line, finding.what, finding.shown) == (0, "a local path", "/home/ann/secret-project")


@pytest.mark.parametrize("content", [b"", b"abc", struct.pack("<Q", 2**63) + b"{}", struct.pack("<Q", 2) + b"[]"])
def test_weights_that_are_none_have_no_metadata(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert scan_file(path) == []


@pytest.mark.parametrize(
    "place",
    [
        "/home/ann/x.jsonl",
        "/Users/ann",
        "/root/data",
        "/tmp/x",
        "C:\\Users\\ann\\x",
        "C:\\\\Users\\\\ann",
        "~/models",
        "file:///mnt/a",
    ],
)
def test_a_place_on_somebodys_machine_is_found(place: str) -> None:
    assert [finding.line for finding in scan("README.md", f"first\nat {place} it was\n")] == [2]


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/settings/tokens", "tokens/s", "and/or", "</think>", "POST /v1/chat/completions", "org/tmp/x", "1/2",
        "a.b/home/x", "hf_hub_download", "sk-learn", "AKIA", "~ 3/4", "{{ '<|im_start|>' }}", "bos_token = '<s>'", "D: 3",
    ],
)  # fmt: skip
def test_what_only_looks_a_little_like_it_is_left_alone(text: str) -> None:
    assert scan("README.md", text) == []


def test_words_of_a_vocabulary_are_no_places() -> None:
    assert scan("tokenizer.json", '"/home/user": 5') == []
    assert scan("tokenizer.json", f'"{Path.home()}/x": 5') != []
    assert scan("tokenizer.json", SECRETS[0]) != []


def test_the_token_in_use_is_found_whatever_its_shape(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "an-odd-token")
    (run / "chat_template.jinja").write_text("{# an-odd-token #}")
    (finding,) = prepare(run, "me/yoda").findings
    assert finding.what == "the token you are logged in with"
    assert "an-odd-token" not in str(finding)


@given(st.text())
def test_scanning_never_fails_and_cutting_places_leaves_none(text: str) -> None:
    scan("README.md", text)
    assert [f for f in scan("README.md", without_places(f"{text} /home/ann/x")) if "/home/ann" in f.shown] == []


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("/home/ann/models/tiny", "tiny"), ("~/rows.jsonl", "rows.jsonl"), ("./a/b", "b"), ("a/b/c", "c"),
        ("C:\\a\\b.csv", "b.csv"),
        ("org/model", "org/model"), ("org/model@abc", "org/model@abc"), ("smollm2-135m", "smollm2-135m"), ("x.gguf", "x.gguf"),
        ("data/rows.jsonl", "rows.jsonl"), ("", ""),
    ],
)  # fmt: skip
def test_a_local_path_becomes_its_last_name_and_a_hub_id_stays(value: str, name: str) -> None:
    assert local_name(value) == name


def test_a_mixture_keeps_no_place_either(run: Path) -> None:
    settings = yaml.safe_load((run / "run.yaml").read_text())
    settings["datasets"] = [{"path": "/home/ann/a.jsonl", "weight": 2.0}, {"path": "org/rows"}]
    settings["dataset_name"] = "/home/ann/a.jsonl + org/rows"
    (run / "run.yaml").write_text(yaml.safe_dump(settings))
    parcel = prepare(run, "me/yoda")
    sent = yaml.safe_load(next(file.content for file in parcel.files if file.name == "run.yaml"))
    assert [entry["path"] for entry in sent["datasets"]] == ["a.jsonl", "org/rows"]
    assert sent["dataset_name"] == "a.jsonl + org/rows"
    assert not parcel.findings


def test_links_do_not_go(run: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("{}")
    (run / "tokenizer_config.json").unlink()
    (run / "tokenizer_config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(RunError, match="not a plain file"):
        prepare(run, "me/yoda")


def test_an_adapter_that_is_not_the_one_trained_is_not_pushed_with_its_facts(run: Path) -> None:
    weights = run / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(RunError, match="not the file that training wrote"):
        prepare(run, "me/yoda")
    (run / "manifest.json").unlink()
    assert "720 trained on" not in card_of(prepare(run, "me/yoda"))


@pytest.mark.parametrize("text", ["[1]", "{", "", "null", "[" * 100_000])
def test_a_damaged_config_is_named(run: Path, text: str) -> None:
    (run / "tokenizer_config.json").write_text(text)
    with pytest.raises(RunError, match=r"tokenizer_config.json cannot be read"):
        prepare(run, "me/yoda")


def card_of(parcel: Any) -> str:
    return str(parcel.files[0].content.decode())


def test_a_merged_model_goes_whole_or_not_at_all(tiny_model_folder: Path, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(tiny_model_folder, tmp_path / "merged")
    parcel = prepare(folder, "me/yoda-merged")
    assert parcel.kind == "model"
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= set(names(parcel))
    assert "library_name: transformers" in card_of(parcel)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(RunError, match=r"misses model-00002-of-00002\.safetensors"):
        prepare(folder, "me/yoda-merged")


def test_a_gguf_file_goes_with_its_modelfile_and_nothing_beside_it(tmp_path: Path, run: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "out.gguf", "llama")
    writer.add_string("general.name", "/home/ann/tiny")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (tmp_path / "Modelfile").write_text("FROM ./out.gguf\n")
    (tmp_path / "other.txt").write_text("x")
    parcel = prepare(tmp_path / "out.gguf", "me/yoda-gguf", facts_of=run)
    assert names(parcel) == ["README.md", "out.gguf", "Modelfile"]
    assert [str(finding) for finding in parcel.findings] == ["out.gguf: a local path (/home/ann/tiny)"]
    assert "720 trained on" in card_of(parcel)
    assert "ollama run hf.co/me/yoda-gguf" in card_of(parcel)


@pytest.mark.parametrize(
    ("made", "said"),
    [([], "holds nothing to push"), (["run.yaml"], "no adapter yet"), (["adapter_config.json"], "unfinished")],
)
def test_what_cannot_be_pushed_is_said(tmp_path: Path, made: list[str], said: str) -> None:
    for name in made:
        (tmp_path / name).write_text("{}")
    with pytest.raises(RunError, match=said):
        prepare(tmp_path, "me/yoda")
    with pytest.raises(RunError, match="There is no run"):
        prepare(tmp_path / "none", "me/yoda")
