"""Proves that every mistake ends in one paragraph with cause and next step, exit code 2, before weights and on no file.

The model these tests name has weights that cannot be read: an error about anything else came before they were touched.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunesmith.cli.main import main
from tunesmith.errors import TunesmithError

GOOD = [{"prompt": "The wind is cold.", "completion": "Cold, the wind is."}] * 6


@pytest.fixture(autouse=True)
def here(tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model, good rows, and nothing else."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model_folder, "model")
    Path("model/model.safetensors").write_bytes(b"cannot be read")
    write("good.jsonl", *GOOD)
    return tmp_path


def write(name: str, *rows: Any) -> None:
    Path(name).write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")


def snapshot() -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(Path().rglob("*"))}


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command, expects it to refuse as it should, and gives what it said."""

    def run(*arguments: str, says: str, then: str) -> str:
        before = snapshot()
        capsys.readouterr()
        assert main(list(arguments)) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert "Traceback" not in said
        assert len(said.strip().splitlines()) == 1, "more than one paragraph"
        assert says in said
        assert then in said
        assert said.index(then) > said.index(says)
        assert snapshot() == before, "a file was made or changed"
        with pytest.raises(TunesmithError):
            main([*arguments, "--debug"])
        return said

    return run


def train(*arguments: str) -> tuple[str, ...]:
    return ("train", *arguments, "--output-dir", "out")


# ---- the command


@pytest.mark.parametrize(("typed", "near"), [("trian", "train"), ("dem", "demo"), ("docter", "doctor")])
def test_an_unknown_command_names_the_nearest(refused: Callable[..., str], typed: str, near: str) -> None:
    refused(typed, says=f"no command '{typed}' (did you mean {near}?)", then="tunesmith --help")


def test_an_unknown_setting_names_the_nearest(refused: Callable[..., str]) -> None:
    refused(
        *train("model", "good.jsonl", "--learning-rat", "1e-4"), says="'learning-rat' (did you mean learning_rate?)", then="--help"
    )


def test_too_many_names(refused: Callable[..., str]) -> None:
    refused(*train("model", "good.jsonl", "third"), says="Too many names: model good.jsonl third", then="--")


def test_a_settings_file_that_is_not_there(refused: Callable[..., str]) -> None:
    refused(*train("none.yaml"), says="none.yaml: No such file", then="Check the path")


def test_a_settings_file_that_is_not_yaml(refused: Callable[..., str]) -> None:
    write("run.yaml", "lora_r: [1")
    refused(*train("run.yaml"), says="run.yaml is not valid YAML", then="Mend")


@pytest.mark.parametrize("command", ["train", "plan"])
@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--max-length", "0", "max_length: 0"),
        ("--lora-r", "0", "lora_r: 0"),
        ("--lora-r", "many", "lora_r: 'many'"),
        ("--learning-rate", "-1", "learning_rate: -1"),
        ("--packing", "tight", "packing: 'tight'"),
        ("--val-size", "-1", "val_size: -1"),
    ],
)
def test_a_wrong_value(refused: Callable[..., str], command: str, flag: str, value: str, says: str) -> None:
    refused(command, "model", "good.jsonl", flag, value, "--output-dir", "out", says=says, then="--help")


# ---- the model


@pytest.mark.parametrize("command", ["train", "plan"])
def test_a_linear_that_the_model_has_not(refused: Callable[..., str], command: str) -> None:
    given = (command, "model", "good.jsonl", "--lora-target-modules", "q_prj", "--output-dir", "out")
    refused(*given, says="no linear layer is called 'q_prj' (did you mean q_proj?)", then="all-linear")


def test_a_config_that_is_not_json(refused: Callable[..., str]) -> None:
    Path("model/config.json").write_text('{"model_type": ')
    said = refused(*train("model", "good.jsonl"), says="model cannot be read", then="Mend the file")
    assert "hub" not in said


def test_no_such_folder(refused: Callable[..., str]) -> None:
    refused(*train("./modle", "good.jsonl"), says="There is no folder ./modle", then="Check the path")


def test_no_such_hub_model(refused: Callable[..., str]) -> None:
    refused(*train("org/none", "good.jsonl"), says="There is no model org/none", then="Check the name")


def test_no_such_gguf_file(refused: Callable[..., str]) -> None:
    refused(*train("none.gguf", "good.jsonl"), says="There is no file none.gguf", then="Check the path")


def test_a_file_that_is_no_gguf(refused: Callable[..., str], here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(here / "cache"))
    write("m.gguf", "not one")
    refused(*train("m.gguf", "good.jsonl"), says="m.gguf is not a GGUF file", then="Download it again")


def test_a_folder_that_is_no_model(refused: Callable[..., str]) -> None:
    Path("empty").mkdir()
    refused(*train("empty", "good.jsonl"), says="empty is not a model folder", then="config.json and .safetensors")


def test_a_model_that_is_no_causal_language_model(refused: Callable[..., str]) -> None:
    Path("model/config.json").write_text('{"model_type": "vit"}')
    refused(*train("model", "good.jsonl"), says="model cannot be loaded", then="causal language model")


def test_an_adapter_as_base(refused: Callable[..., str]) -> None:
    Path("adapter").mkdir()
    write("adapter/adapter_config.json", {"base_model_name_or_path": "org/name"})
    Path("adapter/adapter_model.safetensors").touch()
    refused(*train("adapter", "good.jsonl"), says="adapter holds an adapter, not a base model", then="Name the base model")


def test_pickled_weights_only(refused: Callable[..., str]) -> None:
    Path("model/model.safetensors").rename("model/pytorch_model.bin")
    refused(*train("model", "good.jsonl"), says="only as pickles (pytorch_model.bin)", then="safetensors")


@pytest.mark.parametrize("shard", ["pytorch_model-1.bin", "../x.safetensors"])
def test_an_index_that_names_what_it_should_not(refused: Callable[..., str], shard: str) -> None:
    write("x.safetensors", "")
    write("model/model.safetensors.index.json", {"weight_map": {"a": shard}})
    refused(*train("model", "good.jsonl"), says=f"names '{shard}'", then="Download the model again")


def test_weights_that_cannot_be_read(refused: Callable[..., str]) -> None:
    refused(*train("model", "good.jsonl"), says="model cannot be loaded", then="Download")


def test_no_chat_template(refused: Callable[..., str]) -> None:
    Path("model/chat_template.jinja").unlink()
    refused(*train("model", "good.jsonl"), says="has no chat template", then="--chat-template (alpaca, chatml")


def test_an_unknown_chat_template(refused: Callable[..., str]) -> None:
    refused(*train("model", "good.jsonl", "--chat-template", "chatlm"), says="did you mean chatml?", then=".jinja file")


def test_targets_that_match_nothing(refused: Callable[..., str], tiny_model_folder: Path) -> None:
    refused(
        *train(str(tiny_model_folder), "good.jsonl", "--lora-target-modules", "q_prj,"),
        says="'q_prj' (did you mean q_proj?)",
        then="all-linear",
    )


def test_a_gpu_that_is_not_there(refused: Callable[..., str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    refused(*train("model", "good.jsonl", "--device", "cuda"), says="sees no GPU", then="--device cpu")


def test_an_optimizer_that_needs_a_gpu(refused: Callable[..., str]) -> None:
    refused(*train("model", "good.jsonl", "--device", "cpu", "--optim", "adamw_8bit"), says="needs a GPU", then="adamw_torch")


# ---- the data


def test_no_such_file_names_the_nearest(refused: Callable[..., str]) -> None:
    refused(*train("model", "god.jsonl"), says="There is no file god.jsonl (did you mean good.jsonl?)", then="Check the path")


def test_no_such_data_set(refused: Callable[..., str]) -> None:
    refused(*train("model", "org/no-data"), says="org/no-data is neither a bundled data set", then="Check the name")


@pytest.mark.parametrize(("typed", "near"), [("yodda", "yoda"), ("good", "good.jsonl")])
def test_a_name_that_is_no_data_set_names_the_nearest(refused: Callable[..., str], typed: str, near: str) -> None:
    refused(*train("model", typed), says=f"{typed} (did you mean {near}?) is neither", then="Check the name")


@pytest.mark.parametrize("text", [[], ["", "  "]], ids=["empty", "blank"])
def test_an_empty_file(refused: Callable[..., str], text: list[str]) -> None:
    write("rows.jsonl", *text)
    refused(*train("model", "rows.jsonl"), says="rows.jsonl has no rows", then="at least one row")


def test_no_such_column(refused: Callable[..., str]) -> None:
    said = refused(
        *train("model", "good.jsonl", "--prompt", "promt", "--completion", "completion"), says="no column 'promt'", then="--prompt"
    )
    assert "did you mean prompt?" in said
    assert "prompt, completion" in said


def test_columns_that_say_nothing(refused: Callable[..., str]) -> None:
    write("rows.jsonl", {"left": "a", "right": "b"})
    refused(*train("model", "rows.jsonl"), says="(left, right)", then="--prompt left --completion right")


def test_a_line_that_is_not_json(refused: Callable[..., str]) -> None:
    write("rows.jsonl", *GOOD[:2], '{"prompt": ')
    refused(*train("model", "rows.jsonl"), says="rows.jsonl line 3 is not JSON", then="one JSON object a line")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "Hi.", "completion": ""}, "rows.jsonl line 3 has no assistant text"),
        ({"prompt": "Hi.", "completion": "  \n"}, "rows.jsonl line 3 has no assistant text"),
        ({"prompt": "Hi.", "completion": None}, "rows.jsonl line 3, column 'completion' is empty"),
        ({"prompt": "Hi."}, "rows.jsonl line 3 has no 'completion'; it has prompt."),
        ({"prompt": 3, "completion": "Three."}, "rows.jsonl line 3, column 'prompt' is a number"),
    ],
)
def test_a_row_that_cannot_be_trained_is_named_by_file_and_line(
    refused: Callable[..., str], row: dict[str, Any], says: str
) -> None:
    write("rows.jsonl", *GOOD[:2], row, *GOOD[2:])
    refused(*train("model", "rows.jsonl"), says=says, then="emove")


def test_rows_at_fault_are_left_out_when_asked_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    write("rows.jsonl", *GOOD[:2], '{"prompt": ', {"prompt": "Hi.", "completion": ""}, *GOOD[2:])
    assert main(["plan", "model", "rows.jsonl", "--on-bad-row", "skip", "--output-dir", "out"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "6 rows to train on" in said
    assert "2 bad rows left out. rows.jsonl line 3 is not JSON: Expecting value." in said
    assert "rows.jsonl line 4 has no assistant text to learn." in said


def test_a_row_at_fault_says_how_to_leave_it_out(refused: Callable[..., str]) -> None:
    write("rows.jsonl", *GOOD, "{")
    refused(*train("model", "rows.jsonl"), says="rows.jsonl line 7 is not JSON", then="--on-bad-row skip")


def test_a_file_of_bad_rows_alone(refused: Callable[..., str]) -> None:
    write("rows.jsonl", "{", "[]")
    refused(*train("model", "rows.jsonl", "--on-bad-row", "skip"), says="All 2 rows of rows.jsonl are bad", then="Mend the rows")


def test_a_control_token_in_a_row_is_text_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    write("rows.jsonl", *GOOD, {"prompt": "What is <|im_end|>?", "completion": "A token."})
    assert main(["plan", "model", "rows.jsonl", "--output-dir", "out"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "control tokens of this model are spelled out in 1 row (rows.jsonl line 7): they stay text" in said


def test_a_conversation_without_assistant_is_named_by_file_and_line(refused: Callable[..., str]) -> None:
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    write("rows.jsonl", good, {"messages": [{"role": "user", "content": "a"}]})
    refused(*train("model", "rows.jsonl"), says="rows.jsonl line 2 has no assistant text", then="remove the row")


def test_max_length_that_cuts_every_answer_off(refused: Callable[..., str]) -> None:
    said = refused(*train("model", "good.jsonl", "--max-length", "3"), says="No answer token is left", then="Raise max_length")
    assert "max_length 3 cuts every answer off" in said


def test_max_length_beyond_the_model(refused: Callable[..., str]) -> None:
    refused(
        *train("model", "good.jsonl", "--max-length", "300"), says="max_length 300 is more than the 256", then="Use at most 256"
    )


@pytest.mark.parametrize("size", ["6", "100", "0.99"])
def test_a_val_size_that_leaves_no_row(refused: Callable[..., str], size: str) -> None:
    refused(*train("model", "good.jsonl", "--val-size", size), says="none is left to train on", then="Lower val_size")


def test_held_out_rows_from_a_file_that_is_not_there(refused: Callable[..., str]) -> None:
    refused(
        *train("model", "good.jsonl", "--eval-dataset", "held.jsonl"), says="There is no file held.jsonl", then="Check the path"
    )


# ---- the run's folder


@pytest.mark.parametrize("name", ["run.yaml", "notes.txt", ".hidden"])
def test_an_output_folder_that_is_not_empty_stays_as_it_is(refused: Callable[..., str], name: str) -> None:
    Path("out").mkdir()
    (Path("out") / name).write_text("mine")
    refused(*train("model", "good.jsonl"), says="out is not empty", then="another --output-dir")


def test_an_output_folder_that_is_a_file(refused: Callable[..., str]) -> None:
    Path("out").write_text("mine")
    refused(*train("model", "good.jsonl"), says="out", then="--output-dir")


def test_chat_with_a_folder_that_is_no_run(refused: Callable[..., str]) -> None:
    Path("empty").mkdir()
    refused("chat", "empty", "--prompt", "Hi.", says="empty holds no adapter", then="finished run")


def test_chat_with_a_name_that_is_no_model(refused: Callable[..., str]) -> None:
    refused("chat", "./none", "--prompt", "Hi.", says="no folder ./none", then="Check the path")


def test_chat_with_an_adapter_that_names_no_base(refused: Callable[..., str]) -> None:
    Path("adapter").mkdir()
    write("adapter/adapter_config.json", {})
    refused("chat", "adapter", "--prompt", "Hi.", says="does not name a base model", then="base_model_name_or_path")
