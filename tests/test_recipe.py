"""Proves that a recipe is one truth: every spelling finds its setting, wrong values are named, YAML loses nothing."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.errors import RecipeError
from tunesmith.recipe import _CONVERTED, ALIASES, GROUPS, Recipe, canonical


def extra_of(name: str) -> dict[str, Any]:
    extra = Recipe.model_fields[name].json_schema_extra
    assert isinstance(extra, dict)
    return extra


# ---- every setting is stated once, with help


@pytest.mark.parametrize("name", Recipe.model_fields)
def test_every_setting_has_help_a_group_and_a_default(name: str) -> None:
    field = Recipe.model_fields[name]
    assert field.description is not None
    assert len(field.description) > 10
    assert field.description.endswith(".")
    assert extra_of(name)["group"] in GROUPS
    assert not field.is_required()


def test_every_group_has_settings() -> None:
    assert {extra_of(name)["group"] for name in Recipe.model_fields} == set(GROUPS)


def test_every_alias_maps_to_its_setting_and_no_two_settings_share_one() -> None:
    spellings = Counter(alias for name in Recipe.model_fields for alias in (name, *extra_of(name)["aliases"]))
    assert {alias: count for alias, count in spellings.items() if count > 1} == {}
    assert set(spellings) == set(ALIASES)
    assert not set(spellings) & set(_CONVERTED), "a converted spelling would hide an alias"
    for name in Recipe.model_fields:
        for alias in extra_of(name)["aliases"]:
            assert ALIASES[alias] == name


def test_aliases_are_written_as_flags_can_spell_them() -> None:
    for alias in [*ALIASES, *_CONVERTED]:
        assert alias.isidentifier()
        assert alias == alias.lower()


# ---- other tools' spellings


SPELLINGS = [
    ("micro_batch_size", 4, "per_device_train_batch_size", 4),  # axolotl
    ("base_model", "some/model", "model_name_or_path", "some/model"),
    ("sequence_len", 512, "max_length", 512),
    ("sample_packing", True, "packing", "bfd"),
    ("sample_packing", False, "packing", "none"),
    ("val_set_size", 0.1, "val_size", 0.1),
    ("num_epochs", 2, "num_train_epochs", 2.0),
    ("lora_target_linear", True, "lora_target_modules", "all-linear"),
    ("train_on_inputs", True, "assistant_only_loss", False),
    ("train_on_inputs", False, "assistant_only_loss", True),
    ("cutoff_len", 128, "max_length", 128),  # LLaMA-Factory
    ("lora_target", "all", "lora_target_modules", "all-linear"),
    ("lora_rank", 32, "lora_r", 32),
    ("quantization_bit", 8, "load_in_8bit", True),
    ("quantization_bit", 4, "load_in_4bit", True),
    ("neat_packing", True, "packing", "bfd"),
    ("template", "llama3", "chat_template", "llama3"),
    ("max_samples", 100, "max_rows", 100),
    ("train_on_prompt", True, "assistant_only_loss", False),
    ("quant_bits", 8, "load_in_8bit", True),  # swift
    ("target_modules", ["q_proj"], "lora_target_modules", ["q_proj"]),  # peft
    ("max_seq_length", 64, "max_length", 64),  # unsloth, older trl
    ("lr", 1e-4, "learning_rate", 1e-4),  # torchtune
    ("checkpoint_dir", "here", "model_name_or_path", "here"),
    ("adapter_path", "out", "output_dir", "out"),  # mlx-lm
    ("mask_prompt", False, "assistant_only_loss", False),
]


@pytest.mark.parametrize(("spelling", "value", "name", "meant"), SPELLINGS, ids=lambda v: str(v))
def test_a_spelling_of_another_tool_is_understood_and_its_canonical_name_echoed(
    spelling: str, value: Any, name: str, meant: Any
) -> None:
    said: list[str] = []
    recipe = Recipe.of({spelling: value}, said.append)
    assert getattr(recipe, name) == meant
    assert len(said) == 1
    assert said[0].startswith(f"{spelling} → {name}: ")


@pytest.mark.parametrize("name", ["lora_r", "lora-r"])
def test_the_canonical_name_is_not_echoed(name: str) -> None:
    said: list[str] = []
    assert Recipe.of({name: 4}, said.append).lora_r == 4
    assert said == []


@pytest.mark.parametrize(
    "given_settings",
    [
        {"packing": True, "packing_strategy": "wrapped"},
        {"packing_strategy": "wrapped", "packing": True},
        {"sample_packing": True, "packing_strategy": "wrapped"},
    ],
)
def test_packing_true_beside_a_strategy_means_the_strategy(given_settings: dict[str, Any]) -> None:
    assert Recipe.of(given_settings).packing == "wrapped"


def test_packing_false_beside_a_strategy_is_a_contradiction() -> None:
    with pytest.raises(RecipeError, match="packing is set twice"):
        Recipe.of({"packing": False, "packing_strategy": "wrapped"})


def test_eight_bits_alone_turns_four_bits_off() -> None:
    recipe = Recipe.of({"load_in_8bit": True})
    assert recipe.load_in_8bit
    assert not recipe.load_in_4bit


def test_a_quantization_of_no_known_width_is_refused_rather_than_read_as_four_bits() -> None:
    with pytest.raises(RecipeError, match="quantization_bit"):
        Recipe.of({"quantization_bit": 3})


def test_one_setting_under_two_names_with_one_value_is_no_contradiction() -> None:
    assert Recipe.of({"lora_r": 4, "lora_rank": 4}).lora_r == 4


def test_one_setting_under_two_names_with_two_values_is() -> None:
    with pytest.raises(RecipeError, match="lora_r is set twice, to 4 and 8"):
        Recipe.of({"lora_r": 4, "lora_rank": 8})


def test_target_modules_may_be_a_list_or_text_with_commas() -> None:
    assert Recipe.of({"lora_target_modules": "q_proj, v_proj"}).lora_target_modules == ["q_proj", "v_proj"]
    assert Recipe.of({"lora_target_modules": ["q_proj", "v_proj"]}).lora_target_modules == ["q_proj", "v_proj"]


# ---- what is wrong is named


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("learning_rat", "learning_rate"),
        ("lora_rnk", "lora_rank"),
        ("max-lenght", "max_length"),
        ("num_train_epoch", "num_train_epochs"),
        ("quantization_bits", "quantization_bit"),
    ],
)
def test_an_unknown_setting_names_the_nearest_known_one(key: str, near: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.of({key: 1})
    assert repr(key) in caught.value.what
    assert f"did you mean {near}?" in caught.value.what
    assert "--help" in caught.value.fix


@pytest.mark.parametrize(
    ("key", "value", "then"),
    [
        ("bf16", True, "--dtype bfloat16"),
        ("fp16", False, "Leave it out."),
        ("dry_run", True, "`tunesmith preview` shows what would be learnt"),
        ("push_to_hub", "me/mine", "`tunesmith push RUN user/name`"),
    ],
)
def test_a_setting_that_another_tool_has_says_what_does_what_it_does(key: str, value: Any, then: str) -> None:
    with pytest.raises(RecipeError, match=f"There is no setting '{key}'. .*{then}") as caught:
        Recipe.of({key: value})
    assert "did you mean" not in caught.value.what


WRONG: list[tuple[str, Any]] = [
    ("lora_r", 0),
    ("lora_r", -8),
    ("lora_r", "eight"),
    ("lora_r", 8.5),
    ("lora_r", True),
    ("learning_rate", True),
    ("max_length", True),
    ("lora_alpha", 0),
    ("lora_alpha", -1),
    ("lora_dropout", 1),
    ("lora_dropout", -0.1),
    ("max_length", 0),
    ("max_length", -1),
    ("max_length", "long"),
    ("max_rows", 0),
    ("val_size", -1),
    ("val_size", 1.5),
    ("num_train_epochs", 0),
    ("num_train_epochs", -3),
    ("max_steps", -2),
    ("per_device_train_batch_size", 0),
    ("gradient_accumulation_steps", 0),
    ("learning_rate", 0),
    ("learning_rate", -1e-4),
    ("learning_rate", "fast"),
    ("warmup_ratio", 1),
    ("warmup_steps", -1),
    ("adam_beta1", 1),
    ("adam_epsilon", 0),
    ("max_grad_norm", -1),
    ("weight_decay", -0.1),
    ("seed", -1),
    ("logging_steps", 0),
    ("eval_steps", 0),
    ("optim", "sgd"),
    ("packing", "tight"),
    ("lr_scheduler_type", "polynomial"),
    ("dtype", "float8"),
    ("device", "tpu"),
    ("bnb_4bit_quant_type", "nf5"),
    ("load_in_4bit", "perhaps"),
    ("dequantize", "sometimes"),
    ("output_dir", 3),
    ("model_name_or_path", None),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=lambda v: str(v))
def test_a_wrong_value_names_the_setting_and_the_value(name: str, value: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.of({name: value})
    assert caught.value.what.startswith(f"{name}: {value!r} will not do: ")
    assert "\n" not in caught.value.what


@pytest.mark.parametrize("name", ["learning_rate", "lora_alpha", "num_train_epochs", "weight_decay", "val_size"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_refused(name: str, value: float) -> None:
    with pytest.raises(RecipeError, match=name):
        Recipe.of({name: value})


def test_an_empty_list_of_targets_is_refused() -> None:
    with pytest.raises(RecipeError, match="lora_target_modules"):
        Recipe.of({"lora_target_modules": []})


def test_several_wrong_values_are_all_named_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.of({"lora_r": 0, "max_length": 0})
    assert "lora_r" in caught.value.what
    assert "max_length" in caught.value.what


@pytest.mark.parametrize(
    ("given_settings", "says"),
    [
        ({"load_in_4bit": True, "load_in_8bit": True}, "load_in_4bit and load_in_8bit"),
        ({"quantization_bit": 8, "load_in_4bit": True}, "load_in_4bit and load_in_8bit"),
        ({"prompt": "q"}, "give both"),
        ({"completion": "a"}, "give both"),
        ({"messages": "m", "prompt": "q", "completion": "a"}, "not both"),
        ({"val_size": 0.1, "eval_dataset": "held.jsonl"}, "give one"),
        ({"use_dora": True, "lora_bias": "lora_only"}, "use_dora"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(given_settings: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        Recipe.of(given_settings)


def test_a_recipe_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe().lora_r = 9  # type: ignore[misc]


# ---- YAML


def test_the_default_recipe_survives_yaml(tmp_path: Path) -> None:
    Recipe().write(tmp_path / "run.yaml")
    assert Recipe.of(Recipe.read(tmp_path / "run.yaml")) == Recipe()


RECIPES = st.fixed_dictionaries(
    {},
    optional={
        "model_name_or_path": st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1),
        "lora_r": st.integers(1, 512),
        "lora_alpha": st.floats(1e-3, 1e3),
        "lora_dropout": st.floats(0, 0.99),
        "lora_target_modules": st.lists(st.sampled_from(["q_proj", "k_proj", "up_proj", "on", "no", "1e3"]), min_size=1),
        "packing": st.sampled_from(["bfd", "wrapped", "none"]),
        "learning_rate": st.floats(1e-12, 1),
        "adam_epsilon": st.floats(1e-30, 1e-3),
        "max_steps": st.integers(-1, 10**9),
        "load_in_8bit": st.just(True),
        "chat_template": st.sampled_from(["chatml", "no", "null", "3", "a: b", "- x", "ünï.jinja", "#"]),
        "eval_steps": st.none() | st.integers(1, 99),
        "seed": st.integers(0, 2**40),
    },
)


@given(RECIPES)
@settings(max_examples=60, deadline=None)
def test_any_recipe_written_and_read_is_the_same_recipe(tmp_path_factory: pytest.TempPathFactory, chosen: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    recipe = Recipe.of(chosen)
    recipe.write(path)
    assert Recipe.of(Recipe.read(path)) == recipe


def test_the_file_holds_every_setting_in_the_order_of_the_recipe(tmp_path: Path) -> None:
    Recipe().write(tmp_path / "run.yaml")
    assert list(yaml.safe_load((tmp_path / "run.yaml").read_text())) == list(Recipe.model_fields)


@pytest.mark.parametrize("text", ["learning_rate: 3e-4", "learning_rate: 3.0e-4", "learning_rate: '0.0003'", "lr: 3E-4"])
def test_a_learning_rate_may_be_written_as_people_write_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    assert Recipe.of(Recipe.read(tmp_path / "run.yaml")).learning_rate == pytest.approx(3e-4)


def in_file(text: str | bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / "run.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return make


@pytest.mark.parametrize(
    "make",
    [
        in_file("a: [1"),
        in_file("- a\n- b\n"),
        in_file(""),
        in_file("only text"),
        in_file(b"a: \xff\xfe"),
        lambda folder: folder / "none.yaml",
        lambda folder: folder,
    ],
    ids=["broken", "list", "empty", "scalar", "not UTF-8", "missing", "folder"],
)
def test_a_file_that_is_no_recipe_is_named(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path)
    with pytest.raises(RecipeError) as caught:
        Recipe.read(path)
    assert str(path) in caught.value.what
    assert caught.value.fix.endswith(".")


def test_an_output_folder_at_home_is_no_folder_called_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "run.yaml").write_text("output_dir: ~/runs/mine")
    assert Recipe.of(Recipe.read(tmp_path / "run.yaml")).output_dir == "/home/me/runs/mine"


def test_yaml_can_build_no_objects(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("lora_r: !!python/object/apply:os.getpid []")
    with pytest.raises(RecipeError, match="not valid YAML"):
        Recipe.read(tmp_path / "run.yaml")


def test_canonical_gives_name_and_value() -> None:
    assert canonical("lora-rank", 3) == ("lora_r", 3)
    assert canonical("train-on-inputs", True) == ("assistant_only_loss", False)


# ---- no torch behind --help


@pytest.mark.parametrize(
    "module", ["tunesmith", "tunesmith.recipe", "tunesmith.errors", "tunesmith.cli.main", "tunesmith.cli.settings"]
)
def test_importing_it_loads_neither_torch_nor_transformers(module: str) -> None:
    code = f"import sys, json, {module}; print(json.dumps([m for m in ('torch', 'transformers', 'peft') if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_help_loads_no_torch() -> None:
    code = (
        "import sys\nfrom tunesmith.cli.main import main\ntry:\n    main(['train', '--help'])\nexcept SystemExit:\n    pass\n"
        "print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--learning-rate" in done.stdout
    assert done.stdout.splitlines()[-1] == "False False"
