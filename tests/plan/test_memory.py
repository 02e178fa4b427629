"""Proves that predicted bytes are the bytes transformers counts, on the published Phi-3-mini numbers and on a loaded model."""

from pathlib import Path
from typing import Any

import pytest
from transformers import Phi3Config

from tunesmith.base.adapter import adapter_parameters, attach
from tunesmith.base.catalog import ModelSource, resolve
from tunesmith.base.load import choose_compute, load_model
from tunesmith.data.loader import Loader
from tunesmith.data.packing import plan_rows
from tunesmith.data.render import Example
from tunesmith.errors import ModelError
from tunesmith.plan.memory import (
    Memory,
    Shape,
    footprint,
    kbit_prepared_footprint,
    predict_memory,
    shape_of,
    shape_of_config,
)
from tunesmith.recipe import Recipe
from tunesmith.training.loop import total_updates


@pytest.fixture(scope="module")
def phi3() -> Shape:
    """microsoft/Phi-3-mini-4k-instruct, from its config alone."""
    return shape_of_config(
        Phi3Config(
            vocab_size=32064,
            hidden_size=3072,
            intermediate_size=8192,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=32,
            max_position_embeddings=4096,
            original_max_position_embeddings=4096,
            sliding_window=2047,
            pad_token_id=32000,
        )
    )


# ---- Phi-3-mini, whose numbers are published


def test_phi3_in_4_bits_is_the_published_2_2_gb(phi3: Shape) -> None:
    assert footprint(phi3, bits=4, element_bytes=2) in (2206341312, 2206341504)


def test_phi3_linears_in_4_bits_are_1_8_gb_of_it(phi3: Shape) -> None:
    assert phi3.linear_weights // 2 == 1811939328


def test_phi3_prepared_for_training_is_the_published_2_65_gb(phi3: Shape) -> None:
    assert kbit_prepared_footprint(phi3, 8) in (2651074752, 2651074944)


def test_phi3_has_12_6_m_trainable_of_3_83_b_parameters(phi3: Shape) -> None:
    assert phi3.trainable(8) == 12582912
    assert phi3.parameters + phi3.trainable(8) == 3833662464


def test_phi3_shape_is_read_from_its_config(phi3: Shape) -> None:
    assert (phi3.hidden, phi3.vocab, phi3.layers, phi3.positions) == (3072, 32064, 32, 4096)
    assert {name.rsplit(".", 1)[-1] for name, _, _ in phi3.linears} == {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
    assert len(phi3.linears) == 4 * 32


def test_trainable_counts_named_targets_alone(phi3: Shape) -> None:
    assert phi3.trainable(8, ["o_proj"]) == 32 * 8 * (3072 + 3072)
    assert phi3.trainable(16, ["o_proj"]) == 2 * phi3.trainable(8, ["o_proj"])
    assert phi3.trainable(8, ["5.self_attn.o_proj"]) == 8 * (3072 + 3072)
    assert phi3.trainable(8, ["proj"]) == phi3.trainable(8, []) == 0


def test_341_packed_rows_of_64_are_220_updates() -> None:
    sizes = [17, 30, 9, 64, 41]  # any lengths that add up
    total, examples = 341 * 64, []
    while total:
        n = min(sizes[len(examples) % len(sizes)], total)
        examples.append(Example(list(range(n)), [-100, *range(1, n)], f"row {len(examples)}"))
        total -= n
    rows = plan_rows(examples, "wrapped", 64)
    assert len(rows) == 341
    recipe = Recipe(num_train_epochs=10, packing="wrapped", max_length=64)
    loader = Loader(rows, batch_size=16)
    assert loader.updates_per_epoch == 22
    assert total_updates(loader, recipe) == 220


# ---- a model that is really loaded


@pytest.mark.parametrize(
    ("settings", "bits"), [({}, 4), ({"load_in_8bit": True}, 8), ({"load_in_4bit": False}, 0)], ids=["4 bits", "8 bits", "plain"]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_predicted_footprint_is_what_transformers_counts(
    tiny_model_folder: Path, settings: dict[str, Any], bits: int, dtype: str
) -> None:
    recipe = Recipe.of({"device": "cpu", "dtype": dtype, **settings})
    source, compute = resolve(str(tiny_model_folder)), choose_compute(recipe)
    predicted = footprint(shape_of(source), bits, compute.dtype.itemsize)
    assert predicted == load_model(source, recipe, compute).get_memory_footprint()


@pytest.mark.parametrize("targets", ["all-linear", "q_proj,up_proj", "1.self_attn.q_proj,mlp.up_proj"])
def test_predicted_trainable_parameters_are_those_attached(tiny_model_folder: Path, targets: str) -> None:
    recipe = Recipe.of({"device": "cpu", "lora_r": 4, "lora_target_modules": targets})
    source = resolve(str(tiny_model_folder))
    model = attach(load_model(source, recipe, choose_compute(recipe)), recipe, "x", None)
    assert shape_of(source).trainable(4, recipe.lora_target_modules) == sum(p.numel() for p in adapter_parameters(model).values())


def test_the_shape_needs_no_weights(tiny_model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_model_folder / "config.json").read_bytes())
    shape = shape_of(ModelSource(str(tmp_path), None, "x"))
    assert shape == shape_of(resolve(str(tiny_model_folder)))


def test_a_config_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError):
        shape_of(ModelSource(str(tmp_path), None, "org/broken"))


def test_a_model_that_is_no_causal_language_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit", "hidden_size": 64}')
    with pytest.raises(ModelError, match="org/vit"):
        shape_of(ModelSource(str(tmp_path), None, "org/vit"))


# ---- the peak of a step


def predict(shape: Shape, tokens: int = 1024, keep: bool = False, size: int = 4, **settings: Any) -> Memory:
    return predict_memory(shape, Recipe.of(settings), tokens, size, keep)


def test_the_total_is_the_sum_of_its_parts() -> None:
    assert Memory(1, 20, 300, 4000).total == 4321


def test_keeping_dequantised_weights_costs_exactly_these_weights(phi3: Shape) -> None:
    lean, kept = predict(phi3, keep=False, size=2), predict(phi3, keep=True, size=2)
    assert lean.kept == 0
    assert kept.total - lean.total == 2 * phi3.linear_weights


@pytest.mark.parametrize("settings", [{"load_in_8bit": True}, {"load_in_4bit": False}])
def test_nothing_is_kept_twice_of_weights_that_are_not_in_4_bits(phi3: Shape, settings: dict[str, Any]) -> None:
    assert predict(phi3, keep=True, **settings).kept == 0


def test_double_quantisation_saves_what_the_paper_says(phi3: Shape) -> None:
    single = predict(phi3, bnb_4bit_use_double_quant=False).stored
    double = predict(phi3).stored
    assert 8 * (single - double) / phi3.linear_weights == pytest.approx(0.373, abs=5e-4)  # bits a weight, QLoRA section 3


def test_stored_constants_are_what_bitsandbytes_holds(tiny_model_folder: Path) -> None:
    recipe = Recipe.of({"device": "cpu", "bnb_4bit_use_double_quant": False})
    source = resolve(str(tiny_model_folder))
    model = load_model(source, recipe, choose_compute(recipe))
    states = [m.weight.quant_state for m in model.modules() if type(getattr(m, "weight", None)).__name__ == "Params4bit"]
    held = sum(state.absmax.nelement() * state.absmax.element_size() for state in states)
    shape = shape_of(source)
    assert predict_memory(shape, recipe, 1, 4, False).stored - footprint(shape, 4, 4) == held


def test_the_adapter_costs_weight_gradient_and_two_moments_in_float32(phi3: Shape) -> None:
    assert predict(phi3).adapter == 4 * 4 * phi3.trainable(8)
    assert predict(phi3, lora_r=16).adapter == 2 * predict(phi3).adapter
    assert predict(phi3, lora_target_modules="o_proj").adapter == 16 * phi3.trainable(8, ["o_proj"])


def test_activations_grow_with_tokens_and_checkpointing_saves_most_of_them(phi3: Shape) -> None:
    few, many = predict(phi3, 1024).activations, predict(phi3, 4096).activations
    assert 3 * few < many <= 4 * few
    assert predict(phi3, 4096, gradient_checkpointing=True).activations < many / 4


def test_logits_in_flight_are_bounded(phi3: Shape) -> None:
    growth = [predict(phi3, n + 1024).activations - predict(phi3, n).activations for n in (2**14, 2**18)]
    assert growth[0] == growth[1]
