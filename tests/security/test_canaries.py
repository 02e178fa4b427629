# ruff: noqa: PT012, RUF043, SIM105 (tables of hostile input, and errors looked at where they are caught)
"""Proves that nothing that comes with a model, an adapter or data is run or opened elsewhere: pickles and modules that would
leave a file behind, names that lead out of their folder, pipes that would be waited for."""

import hashlib
import json
import os
import pickle
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tunesmith.base.adapter import open_adapter
from tunesmith.base.catalog import from_gguf, resolve
from tunesmith.base.load import choose_compute, load_model
from tunesmith.base.tokenizer import load_tokenizer
from tunesmith.cli.main import main
from tunesmith.data.sources import load_rows
from tunesmith.errors import AdapterError, DataError, ModelError, TunesmithError
from tunesmith.recipe import Recipe
from tunesmith.training.checkpoint import newest_checkpoint

ROWS = [{"prompt": "The wind is cold.", "completion": "Cold, the wind is."}] * 6
CODE = "from pathlib import Path\nPath('{}').touch()\nclass Canary: pass\n"


class Canary:
    """Unpickled, it touches a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.fixture
def here(tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, rows, and a module beside them that tells if it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    shutil.copytree(tiny_model_folder, tmp_path / "model")
    for place in (tmp_path, tmp_path / "model"):
        (place / "canary_module.py").write_text(CODE.format(tmp_path / "canary"))
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    yield tmp_path
    assert not (tmp_path / "canary").exists(), "it was run"
    assert not any("canary_module" in name for name in sys.modules)


@pytest.fixture
def canary(here: Path) -> bytes:
    """A pickle that would touch the file; it would indeed."""
    content = pickle.dumps(Canary(here / "canary"))
    pickle.loads(content)
    assert (here / "canary").exists()
    (here / "canary").unlink()
    return content


def edit(path: Path, **values: object) -> None:
    told = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**told, **values}))


@pytest.fixture
def adapter(here: Path) -> Path:
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(here / "model")
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(here / "adapter")
    return here / "adapter"


def base(here: Path):
    return AutoModelForCausalLM.from_pretrained(here / "model")


# ---- pickles


def test_pickled_adapter_weights_are_not_opened(here: Path, adapter: Path, canary: bytes) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(canary)
    with pytest.raises(AdapterError):
        open_adapter(base(here), adapter)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.safetensors"])
def test_pickled_model_weights_are_not_opened(here: Path, canary: bytes, name: str) -> None:
    (here / "model/model.safetensors").unlink()
    (here / "model" / name).write_bytes(canary)
    with pytest.raises(ModelError):
        recipe = Recipe(device="cpu")
        load_model(resolve(str(here / "model")), recipe, choose_compute(recipe))


def test_a_pickled_shard_of_an_index_is_not_opened(here: Path, canary: bytes) -> None:
    (here / "model/shard.bin").write_bytes(canary)
    edit(here / "model/model.safetensors.index.json", weight_map={"lm_head.weight": "shard.bin"})
    with pytest.raises(ModelError, match="shard.bin"):
        resolve(str(here / "model"))


def test_pickled_state_in_a_checkpoint_is_not_opened(here: Path, canary: bytes) -> None:
    folder = here / "checkpoints/checkpoint-1"
    folder.mkdir(parents=True)
    files = ["adapter.safetensors", "optimizer.safetensors", "random.safetensors", "state.json", "metrics.jsonl", "optimizer.pt"]
    listed = {}
    for name in files:
        (folder / name).write_bytes(canary)
        listed[name] = {"sha256": hashlib.sha256(canary).hexdigest(), "bytes": len(canary)}
    manifest = {"format": 1, "step": 1, "files": listed}
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(TunesmithError, match="cannot be read"):
        newest_checkpoint(folder.parent)


@pytest.mark.parametrize("name", ["rows.pkl", "rows.pickle", "rows.bin", "rows.jsonl", "rows.parquet", "rows.csv", "rows.json"])
def test_pickled_rows_are_not_opened(here: Path, canary: bytes, name: str) -> None:
    (here / "data").mkdir()
    (here / "data" / name).write_bytes(canary)
    for place in (here / "data" / name, here / "data"):
        with pytest.raises(DataError):
            load_rows(str(place))


# ---- modules


@pytest.mark.parametrize("model_type", ["llama", "canary"])
def test_a_models_own_code_is_never_imported(here: Path, model_type: str) -> None:
    places = {"AutoConfig": "canary_module.Canary", "AutoModelForCausalLM": "canary_module.Canary"}
    edit(here / "model/config.json", auto_map=places, trust_remote_code=True, model_type=model_type)
    edit(here / "model/tokenizer_config.json", auto_map={"AutoTokenizer": ["canary_module.Canary", None]}, trust_remote_code=True)
    code = main(["train", "model", "rows.jsonl", "--output-dir", "out", "--max-steps", "1", "--device", "cpu"])
    assert code == (0 if model_type == "llama" else 2)


def test_a_tokenizers_own_class_is_never_imported(here: Path) -> None:
    places = {"AutoTokenizer": ["canary_module.Canary", "canary_module.Canary"]}
    edit(here / "model/tokenizer_config.json", tokenizer_class="CanaryTokenizer", auto_map=places)
    try:
        load_tokenizer(resolve(str(here / "model")))
    except ModelError:
        pass  # either is well: a tokenizer of transformers' own, or none


@pytest.mark.parametrize("setting", ["trust_remote_code: true", "trust-remote-code: yes", "auto_map: {a: canary_module.Canary}"])
def test_no_setting_allows_it(here: Path, setting: str, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "run.yaml").write_text(setting)
    assert main(["train", "model", "rows.jsonl", "run.yaml", "--output-dir", "out"]) == 2
    assert "There is no setting" in capsys.readouterr().err


def test_yaml_makes_no_objects(here: Path) -> None:
    (here / "run.yaml").write_text(f"lora_r: !!python/object/apply:pathlib.Path.touch [{here / 'canary'}]\n")
    with pytest.raises(TunesmithError, match="not valid YAML"):
        Recipe.read(here / "run.yaml")


@pytest.mark.parametrize(
    "settings",
    [
        {"auto_mapping": {"base_model_class": "Canary", "parent_library": "canary_module"}},
        {"megatron_config": {"a": 1}, "megatron_core": "canary_module"},
        {"auto_mapping": {"base_model_class": "Canary", "parent_library": "canary_module"}, "peft_type": "CANARY"},
        {"loftq_config": {"a": "canary_module"}},
        {"init_lora_weights": "canary_module.Canary"},
        {"target_modules": "(a+)+$"},
        {"r": 2**19},
        {"layer_replication": [[0, 10**6]]},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_an_adapters_config_is_read_as_values(here: Path, adapter: Path, settings: dict) -> None:
    edit(adapter / "adapter_config.json", **settings)
    if settings.keys() == {"auto_mapping"}:
        open_adapter(base(here), adapter)  # what it says is not looked at
        return
    with pytest.raises(AdapterError):
        open_adapter(base(here), adapter)


# ---- names that lead elsewhere


def fingerprint(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["../secret/.env", ".env", "/etc/hostname", "a/../../secret/.env", "..\\secret"])
@pytest.mark.parametrize("key", ["vocab_file", "merges_file", "tokenizer_file", "added_tokens_file"])
def test_a_tokenizer_that_names_files_elsewhere_is_refused(here: Path, key: str, name: str) -> None:
    (here / "secret").mkdir()
    (here / "secret/.env").write_text("SECRET=1")
    before = fingerprint(here / "secret")
    edit(here / "model/tokenizer_config.json", **{key: name})
    with pytest.raises(ModelError, match=f"{key} is .* not a file of this model"):
        resolve(str(here / "model"))
    assert fingerprint(here / "secret") == before


@pytest.mark.parametrize("name", ["../../elsewhere", "/tmp/elsewhere", "a/b", "tool_use"])
def test_a_template_that_is_named_as_a_file_elsewhere_is_not_written_there(here: Path, name: str) -> None:
    config = json.loads((here / "model/tokenizer_config.json").read_text())
    template = (here / "model/chat_template.jinja").read_text()
    (here / "model/chat_template.jinja").unlink()
    named = [{"name": "default", "template": template}, {"name": name, "template": template}]
    edit(here / "model/tokenizer_config.json", **config, chat_template=named)
    code = main(
        ["train", "model", "rows.jsonl", "--output-dir", "runs/out", "--max-steps", "1", "--val-size", "0", "--device", "cpu"]
    )
    assert code == 0
    assert [path.relative_to(here).as_posix() for path in here.rglob("*.jinja")] == ["runs/out/chat_template.jinja"]
    assert not Path("/tmp/elsewhere.jinja").exists()


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/outside.safetensors", "a/b.safetensors", "..\\x.safetensors", ""])
def test_an_index_that_names_files_elsewhere_is_refused(here: Path, shard: str) -> None:
    shutil.copy(here / "model/model.safetensors", here / "outside.safetensors")
    edit(here / "model/model.safetensors.index.json", weight_map={"a": shard})
    with pytest.raises(ModelError):
        resolve(str(here / "model"))


PIPES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "weights": ("model/model.safetensors", lambda here: resolve(str(here / "model"))),
    "config": ("model/config.json", lambda here: resolve(str(here / "model"))),
    "shard": ("model/shard.safetensors", lambda here: resolve(str(here / "model"))),
    "tokenizer": ("model/tokenizer.json", lambda here: resolve(str(here / "model"))),
    "rows": ("data/rows.jsonl", lambda here: load_rows(str(here / "data"))),
    "rows by name": ("data/rows.jsonl", lambda here: load_rows(str(here / "data/rows.jsonl"))),
    "settings": ("run.yaml", lambda here: Recipe.read(here / "run.yaml")),
    "gguf": ("m.gguf", lambda here: resolve(str(here / "m.gguf"))),
    "manifest": ("c/checkpoint-1/manifest.json", lambda here: newest_checkpoint(here / "c")),
    "adapter config": ("adapter/adapter_config.json", lambda here: open_adapter(base(here), here / "adapter")),
    "adapter weights": ("adapter/adapter_model.safetensors", lambda here: open_adapter(base(here), here / "adapter")),
}


@pytest.mark.parametrize("what", PIPES)
def test_a_pipe_is_refused_and_not_waited_for(here: Path, adapter: Path, what: str) -> None:
    name, reader = PIPES[what]
    (here / name).parent.mkdir(parents=True, exist_ok=True)
    (here / name).unlink(missing_ok=True)
    os.mkfifo(here / name)
    with pytest.raises(TunesmithError):
        reader(here)


# ---- sizes that cannot be


def gguf(*counts: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, *counts)


TEXT = struct.pack("<Q", 1) + b"a"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (gguf(2**60, 0), "tells of 1,152,921,504,606,846,976 tensors"),
        (gguf(0, 2**60), "facts"),
        (gguf(0, 1) + struct.pack("<Q", 2**62), "ends within its header"),
        (gguf(0, 1) + TEXT + struct.pack("<IIQ", 9, 8, 2**60), "lists"),
        (gguf(0, 1) + TEXT + struct.pack("<IIQ", 9, 12, 2**60), "ends within its header"),
        (gguf(0, 1) + TEXT + struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ", 9, 1) * 9999, "unknown type 9"),
        (gguf(1, 0) + TEXT + struct.pack("<I", 2**31), "2,147,483,648 dimensions"),
        (gguf(1, 0) + TEXT + struct.pack("<IQQIQ", 2, 2**40, 2**40, 0, 0), "would need"),
        (gguf(1, 0) + TEXT + struct.pack("<IQIQ", 1, 8, 0, 2**50), "would need"),
        (gguf(1, 0) + TEXT + struct.pack("<IQIQ", 1, 8, 999, 0), "unknown type 999"),
        (b"GGUF" + struct.pack("<IQQ", 99, 0, 0), "version is 99"),
        (b"GGUF", "ends within its header"),
    ],
)
def test_a_gguf_header_that_tells_of_more_than_there_is_is_refused(here: Path, content: bytes, says: str) -> None:
    (here / "m.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=f"not a whole GGUF file: .*{says}"):
        from_gguf(here / "m.gguf")


@pytest.mark.parametrize("length", [2**63, 2**40, 10**8 + 1])
@pytest.mark.parametrize("shape", [[2**40], [2, 2**62], [-1]])
def test_a_safetensors_header_that_tells_of_more_than_there_is_is_refused(
    here: Path, adapter: Path, length: int, shape: list[int]
) -> None:
    header = json.dumps({"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, 16]}}).encode()
    for says in (length, len(header)):
        (adapter / "adapter_model.safetensors").write_bytes(struct.pack("<Q", says) + header + b"\0" * 16)
        with pytest.raises(AdapterError):
            open_adapter(base(here), adapter)
