"""Proves that a command line means what was typed: every spelling, YAML before flags, and no word lost."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from tunesmith.cli.settings import add_settings, parse, read_settings
from tunesmith.errors import RecipeError
from tunesmith.recipe import Recipe


def read(*arguments: str) -> Recipe:
    return said(*arguments)[0]


def said(*arguments: str) -> tuple[Recipe, list[str]]:
    parser, lines = argparse.ArgumentParser(prog="tunesmith train"), []
    add_settings(parser)
    return read_settings(parser, list(arguments), lines.append), lines


def test_data_that_were_not_named_are_told() -> None:
    assert parse("train", "", ["smollm2-135m"])[1] == ["No DATA was given: this is about the bundled yoda sentences"]
    assert parse("train", "", ["smollm2-135m", "yoda"])[1] == parse("train", "", ["--dataset-name", "yoda"])[1] == []


# ---- spellings


@pytest.mark.parametrize(
    "arguments",
    [
        ["--learning-rate", "3e-4"],
        ["--learning_rate", "3e-4"],
        ["--learning-rate=3e-4"],
        ["--learning_rate=0.0003"],
        ["learning_rate=3e-4"],
        ["--lr", "3e-4"],
        ["lr=3e-4"],
    ],
    ids=" ".join,
)
def test_a_setting_may_be_spelled_in_any_of_these_ways(arguments: list[str]) -> None:
    assert read(*arguments) == Recipe(learning_rate=3e-4)


@pytest.mark.parametrize("arguments", [["--no-shuffle"], ["--shuffle", "false"], ["--shuffle=false"], ["shuffle=no"]], ids=" ".join)
def test_a_switch_is_turned_off(arguments: list[str]) -> None:
    assert read(*arguments).shuffle is False


@pytest.mark.parametrize("arguments", [["--use-dora"], ["--use-dora", "true"], ["use_dora=true"], ["--use-dora=yes"]], ids=" ".join)
def test_a_switch_is_turned_on(arguments: list[str]) -> None:
    assert read(*arguments).use_dora is True


@pytest.mark.parametrize("switch", ["--no-shuffle", "--use-dora", "--gradient-checkpointing", "--activation-offloading"])
def test_a_switch_does_not_swallow_the_name_after_it(switch: str) -> None:
    recipe = read(switch, "my/model", "rows.jsonl")
    assert (recipe.model_name_or_path, recipe.dataset_name) == ("my/model", "rows.jsonl")


@pytest.mark.parametrize(("word", "value"), [("auto", "auto"), ("true", True), ("false", False)])
def test_a_switch_that_may_be_auto_takes_its_word(word: str, value: bool | str) -> None:
    recipe = read("--gradient-checkpointing", word, "my/model")
    assert recipe.gradient_checkpointing == value
    assert recipe.model_name_or_path == "my/model"


def test_two_switches_in_a_row_are_two_switches() -> None:
    recipe = read("--use-dora", "--no-shuffle", "--use-rslora")
    assert (recipe.use_dora, recipe.shuffle, recipe.use_rslora) == (True, False, True)


def test_no_packing_turns_packing_off() -> None:
    assert read("--no-packing").packing == "none"


@pytest.mark.parametrize("arguments", [["--max-steps", "-1"], ["--max-steps=-1"], ["max_steps=-1"]], ids=" ".join)
def test_a_negative_number_is_a_value(arguments: list[str]) -> None:
    assert read(*arguments).max_steps == -1
    assert read(*arguments, "--lora-r", "4").lora_r == 4


def test_a_negative_number_where_none_is_allowed_is_named() -> None:
    with pytest.raises(RecipeError, match="lora_r: -8"):
        read("--lora-r", "-8")


@pytest.mark.parametrize("text", ["q_proj,v_proj", "[q_proj, v_proj]"])
def test_targets_may_be_written_with_commas_or_as_a_list(text: str) -> None:
    assert read("--lora-target-modules", text).lora_target_modules == ["q_proj", "v_proj"]


def test_all_targets_may_be_asked_for_by_a_switch() -> None:
    recipe = read("--lora-target-linear", "my/model")
    assert (recipe.lora_target_modules, recipe.model_name_or_path) == ("all-linear", "my/model")


@pytest.mark.parametrize("text", ["2024", "1.0", "true", "yes", "no", "2024-01-01", "#3", "a: b", "[x]", "1e3", "@x", "*x"])
def test_text_is_taken_as_typed(text: str) -> None:
    assert read("--output-dir", text).output_dir == text
    recipe = read("--prompt", text, "--completion", "answer")
    assert recipe.prompt == text


def test_the_name_of_another_tool_is_echoed_with_ours() -> None:
    recipe, lines = said("--micro-batch-size", "4", "--lora-r", "8", "--train-on-inputs", "true")
    assert recipe.per_device_train_batch_size == 4
    assert recipe.assistant_only_loss is False
    assert lines == ["micro-batch-size → per_device_train_batch_size: 4", "train-on-inputs → assistant_only_loss: False"]


# ---- names


def test_the_first_name_is_the_model_and_the_second_the_data() -> None:
    recipe = read("my/model@v1", "--lora-r", "4", "some/rows.jsonl", "--seed", "1")
    assert (recipe.model_name_or_path, recipe.dataset_name, recipe.lora_r, recipe.seed) == ("my/model@v1", "some/rows.jsonl", 4, 1)


def test_no_name_is_the_bundled_model_and_data() -> None:
    assert read() == Recipe()


@pytest.mark.parametrize("arguments", [["a", "b", "c"], ["a", "b", "--lora-r", "4", "c"]], ids=" ".join)
def test_too_many_names_are_refused_and_shown(arguments: list[str]) -> None:
    with pytest.raises(RecipeError, match="Too many names: a b c"):
        read(*arguments)


def test_a_path_with_an_equals_sign_is_a_name() -> None:
    assert read("my/model", "./a=b/rows.jsonl").dataset_name == "./a=b/rows.jsonl"


# ---- YAML


@pytest.fixture
def run_yaml(tmp_path: Path) -> str:
    path = tmp_path / "run.yaml"
    path.write_text("base_model: from/yaml\ndataset: yaml.jsonl\nlora_rank: 4\nlearning_rate: 3e-4\nseed: 7\n")
    return str(path)


def test_a_yaml_file_gives_the_settings(run_yaml: str) -> None:
    recipe, lines = said(run_yaml)
    assert recipe == Recipe(model_name_or_path="from/yaml", dataset_name="yaml.jsonl", lora_r=4, learning_rate=3e-4, seed=7)
    assert lines == ["base_model → model_name_or_path: from/yaml", "dataset → dataset_name: yaml.jsonl", "lora_rank → lora_r: 4"]


@pytest.mark.parametrize("order", [0, 1], ids=["file first", "file last"])
def test_flags_win_over_the_file_wherever_they_stand(run_yaml: str, order: int) -> None:
    flags = ["--lora-r", "16", "--lr=1e-4"]
    recipe = read(*([run_yaml, *flags] if order == 0 else [*flags, run_yaml]))
    assert (recipe.lora_r, recipe.learning_rate, recipe.seed) == (16, 1e-4, 7)


def test_names_win_over_the_file_and_flags_over_names(run_yaml: str) -> None:
    assert read(run_yaml, "typed/model").model_name_or_path == "typed/model"
    assert read(run_yaml, "typed/model").dataset_name == "yaml.jsonl"
    assert read(run_yaml, "typed/model", "--model", "flag/model").model_name_or_path == "flag/model"


@pytest.mark.parametrize("in_file", [False, True])
def test_a_column_beside_a_mixture_is_refused_with_the_file_whose_entries_would_name_it(tmp_path: Path, in_file: bool) -> None:
    mix = tmp_path / "mix.yaml"
    mix.write_text("datasets:\n  - {path: a.jsonl}\n" + "messages: chat\n" * in_file)
    with pytest.raises(RecipeError, match=r"each entry of datasets in \S+/mix\.yaml says itself .*`messages: chat`"):
        read(str(mix), *([] if in_file else ["--messages", "chat"]))


def test_of_two_files_the_later_wins(run_yaml: str, tmp_path: Path) -> None:
    (tmp_path / "more.yml").write_text("seed: 8")
    recipe = read(run_yaml, str(tmp_path / "more.yml"))
    assert (recipe.seed, recipe.lora_r) == (8, 4)


def test_a_saved_recipe_gives_the_same_recipe(tmp_path: Path) -> None:
    recipe = Recipe.of({"lora_r": 4, "lr": 3e-4, "load_in_8bit": True, "lora_target": "q_proj,v_proj", "packing": "wrapped"})
    recipe.write(tmp_path / "run.yaml")
    assert said(str(tmp_path / "run.yaml")) == (recipe, [])


@pytest.mark.parametrize("text", ["packing_strategy: wrapped\npacking: true", "sample_packing: true\npacking_strategy: wrapped"])
def test_packing_true_beside_a_strategy_in_a_file_means_the_strategy(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    assert read(str(tmp_path / "run.yaml")).packing == "wrapped"


def test_two_values_for_one_setting_in_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("lora_r: 4\nlora_rank: 8\n")
    with pytest.raises(RecipeError, match="lora_r is set twice, to 4 and 8"):
        read(str(tmp_path / "run.yaml"))


def test_an_unknown_setting_in_a_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("lora_rnk: 4\n")
    with pytest.raises(RecipeError, match=r"run\.yaml: There is no setting 'lora_rnk' \(did you mean lora_rank"):
        read(str(tmp_path / "run.yaml"))


# ---- what is wrong


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (["--learning-rat", "1"], "learning_rate"),
        (["lora_rr=3"], "lora_r"),
        (["--no-shufle"], "shuffle"),
        (["--outptu-dir=x"], "output_dir"),
    ],
)
def test_an_unknown_flag_names_the_nearest(arguments: list[str], near: str) -> None:
    with pytest.raises(RecipeError, match=f"did you mean {near}"):
        read(*arguments)


@pytest.mark.parametrize(
    ("arguments", "then"),
    [
        (["smollm2-135m", "--dry-run"], "`tunesmith preview smollm2-135m` .*`tunesmith plan smollm2-135m`"),
        (["--dry_run=true", "--lora-r", "4"], "`tunesmith plan --lora-r 4`"),
        (["resume_from_checkpoint=true"], "tunesmith resume RUN"),
        (["--overwrite-output-dir"], "another --output-dir"),
        (["--bf16"], "--dtype bfloat16"),
        (["--no-bf16"], "Leave it out.$"),
        (["--fp16", "False"], "Leave it out.$"),
        (["--dry-run", "true", "m", "d"], "`tunesmith preview m d` .*`tunesmith plan m d`"),
        (["--dry-run", "m", "d", "--no-shuffle"], "`tunesmith preview m d --no-shuffle` .*`tunesmith plan m d --no-shuffle`"),
    ],
)
def test_a_flag_of_other_tools_that_is_no_setting_says_what_does_what_it_does(arguments: list[str], then: str) -> None:
    with pytest.raises(RecipeError, match=then) as caught:
        read(*arguments)
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "then"),
    [("bf16: true", "--dtype bfloat16"), ("push_to_hub: false", "Leave it out.$"), ("overwrite_output_dir: true", "--output-dir")],
)
def test_so_does_one_in_a_file(tmp_path: Path, line: str, then: str) -> None:
    (tmp_path / "run.yaml").write_text(line)
    with pytest.raises(RecipeError, match=rf"run\.yaml: There is no setting .*{then}"):
        read(str(tmp_path / "run.yaml"))


@pytest.mark.parametrize("arguments", [["--lora-r"], ["--output-dir"], ["--lora-r", "--seed", "1"], ["--lora-r="]], ids=" ".join)
def test_a_flag_without_its_value_is_refused(arguments: list[str]) -> None:
    with pytest.raises(RecipeError):
        read(*arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--lora-r"], "--lora-r has no value. Give it one, such as --lora-r 8."),
        (["--max-length", "--seed", "1"], "--max-length has no value. Give it one, such as --max-length VALUE."),
        (["-r", "8"], "There is no setting '-r': all begin with two dashes."),
        (["--lora-r", "eight"], "lora_r: 'eight' will not do: a whole number is needed here."),
        (["--val-size", "10%"], "val_size: '10%' will not do: a number is needed here."),
        (["--epochs", "0"], "num_train_epochs: 0 will not do: it should be greater than 0."),
    ],
)
def test_what_is_wrong_with_a_flag_is_said_in_plain_words(arguments: list[str], says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read(*arguments)
    assert says in str(caught.value)


@pytest.mark.parametrize("text", ["[1", "{a", '"x'])
def test_a_value_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="lora-r"):
        read("--lora-r", text)


# ---- help


def test_help_lists_every_setting_once_with_its_group_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        read("--help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for name in Recipe.model_fields:
        assert text.count(f"\n  --{name.replace('_', '-')} ") == 1
    for group in ("model", "adapter", "data", "training", "output"):
        assert f"{group} settings:" in text
    words: Any = " ".join(text.split())
    assert "--lora-r N Rank of the adapter; 8 holds a style, 16-64 more knowledge. [8]" in words
    assert "--dtype auto|float32|bfloat16|float16 " in words
    assert "--shuffle true|false Draw the rows in a new order each epoch. [true]" in words
    assert "--gradient-checkpointing true|false|auto " in words
