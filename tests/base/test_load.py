"""Proves that a model is loaded as asked, in a type this machine computes well, or refused in the user's terms."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tunesmith.base.adapter import attach
from tunesmith.base.catalog import ModelSource, resolve
from tunesmith.base.load import (
    _check_quantised,
    choose_compute,
    decoder_linears,
    load_model,
    model_error,
    quantised_share,
    quantization,
    weight_bytes,
)
from tunesmith.errors import MachineError, ModelError
from tunesmith.plan.memory import shape_of
from tunesmith.recipe import Recipe

LINEARS = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128)
OTHERS = 2 * 300 * 64 + 5 * 64  # embeddings, head, norms
BUFFERS = 8 * 2  # inverse frequencies, as they are and as they were


def load(folder: Path, **settings: Any) -> Any:
    recipe = Recipe.of({"device": "cpu", **settings})
    return load_model(resolve(str(folder)), recipe, choose_compute(recipe))


@pytest.fixture
def copy(tiny_model_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model_folder, tmp_path / "copy")


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# ---- device and type


def test_a_process_that_has_bf16_by_default_gets_the_same_model_and_adapter(tiny_model_folder: Path) -> None:
    """NF4's levels are a table of bitsandbytes', and an adapter is drawn, in torch's default type."""

    def made() -> dict[str, torch.Tensor]:
        recipe = Recipe.of({"device": "cpu", "cache_base": False})
        tensors = dict(attach(load(tiny_model_folder, cache_base=False), recipe, "x", None).state_dict())
        assert any(name.endswith(".quant_map") for name in tensors)
        return tensors

    expected = made()
    torch.set_default_dtype(torch.bfloat16)
    try:
        got = made()
        assert torch.get_default_dtype() == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype, name
        assert torch.equal(got[name], tensor), name


def test_a_cpu_computes_in_float32_and_says_why() -> None:
    compute = choose_compute(Recipe(device="cpu"))
    assert compute.device == torch.device("cpu")
    assert compute.dtype == torch.float32
    assert "CPU" in compute.reason


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_a_type_that_is_asked_for_is_taken(name: str) -> None:
    compute = choose_compute(Recipe(device="cpu", dtype=name))
    assert (compute.dtype, compute.reason) == (getattr(torch, name), "asked for")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_asking_for_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(MachineError, match="sees no GPU") as caught:
        choose_compute(Recipe(device="cuda"))
    assert "--device cpu" in caught.value.fix


# ---- quantisation


def test_four_bits_by_default_with_every_decoder_weight_packed_two_to_a_byte(tiny_model_folder: Path) -> None:
    model = load(tiny_model_folder)
    assert weight_bytes(model) == {"4-bit": LINEARS // 2, "float32": 4 * OTHERS + 4 * BUFFERS}
    assert quantised_share(model) == 1
    weight = model.model.layers[0].self_attn.q_proj.weight
    assert weight.quant_state.quant_type == "nf4"
    assert weight.quant_state.nested, "double quantisation is off"


def test_fp4_without_double_quantisation(tiny_model_folder: Path) -> None:
    model = load(tiny_model_folder, bnb_4bit_quant_type="fp4", bnb_4bit_use_double_quant=False)
    state = model.model.layers[0].self_attn.q_proj.weight.quant_state
    assert (state.quant_type, state.nested) == ("fp4", False)


def test_eight_bits(tiny_model_folder: Path) -> None:
    model = load(tiny_model_folder, load_in_8bit=True)
    assert weight_bytes(model)["8-bit"] == LINEARS
    assert quantised_share(model) == 1


def test_not_quantised(tiny_model_folder: Path) -> None:
    model = load(tiny_model_folder, load_in_4bit=False)
    assert weight_bytes(model) == {"float32": 4 * (LINEARS + OTHERS + BUFFERS)}
    assert quantised_share(model) == 0


def test_not_quantised_in_16_bits(tiny_model_folder: Path) -> None:
    model = load(tiny_model_folder, load_in_4bit=False, dtype="bfloat16")
    assert weight_bytes(model) == {"bfloat16": 2 * (LINEARS + OTHERS), "float32": 4 * BUFFERS}


def test_the_head_is_never_quantised(tiny_model_folder: Path) -> None:
    model = load(tiny_model_folder)
    assert type(model.lm_head) is torch.nn.Linear
    assert "lm_head" not in decoder_linears(model)
    assert len(decoder_linears(model)) == 14


def test_a_base_is_frozen_in_eval_mode_on_its_device(tiny_model_folder: Path) -> None:
    model = load(tiny_model_folder)
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.training
    assert {p.device.type for p in model.parameters()} == {"cpu"}


def test_quantised_and_plain_models_say_about_the_same(tiny_model_folder: Path) -> None:
    ids = torch.arange(10, 30).unsqueeze(0)
    with torch.no_grad():
        plain = load(tiny_model_folder, load_in_4bit=False)(input_ids=ids).logits
        packed = load(tiny_model_folder)(input_ids=ids).logits
    cosine = torch.nn.functional.cosine_similarity(plain.flatten(), packed.flatten(), dim=0)
    assert 0.95 < float(cosine) < 0.99999


def test_a_decoder_that_stayed_unquantised_is_refused(tiny_model_folder: Path) -> None:
    with pytest.raises(ModelError, match="only 0% of its linear weights are") as caught:
        _check_quantised(load(tiny_model_folder, load_in_4bit=False), ModelSource("x", None, "org/x"))
    assert "org/x" in caught.value.what
    assert "--load-in-4bit false" in caught.value.fix


def test_a_decoder_whose_experts_stayed_unquantised_is_refused(tiny_model_folder: Path) -> None:
    model = load(tiny_model_folder)
    model.model.layers[0].experts = torch.nn.Module()
    model.model.layers[0].experts.gate_up = torch.nn.Parameter(torch.zeros(4, 256, 128), requires_grad=False)
    with pytest.raises(ModelError, match="experts"):
        _check_quantised(model, ModelSource("x", None, "org/x"))


def test_a_quantised_decoder_passes(tiny_model_folder: Path) -> None:
    for settings in ({}, {"load_in_8bit": True}):
        _check_quantised(load(tiny_model_folder, **settings), ModelSource("x", None, "x"))


def test_the_quantisation_asked_for_is_the_one_configured() -> None:
    nf4 = quantization(Recipe(), torch.float32)
    assert (nf4.load_in_4bit, nf4.bnb_4bit_quant_type, nf4.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert nf4.bnb_4bit_compute_dtype == torch.float32
    assert quantization(Recipe.of({"load_in_8bit": True}), torch.float32).load_in_8bit
    assert quantization(Recipe(load_in_4bit=False), torch.float32) is None


# ---- what cannot be loaded


def test_damaged_weights_are_refused(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(copy)


def test_weights_of_another_shape_than_the_config_says_are_refused(copy: Path) -> None:
    change_config(copy, intermediate_size=256)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(copy, load_in_4bit=False)


@pytest.mark.parametrize("settings", [{}, {"load_in_4bit": False}], ids=["4 bits", "plain"])
def test_weights_that_miss_a_tensor_are_refused_rather_than_filled_at_random(copy: Path, settings: dict[str, Any]) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj"):
        load(copy, **settings)


def test_a_model_that_is_no_causal_language_model_is_refused(copy: Path) -> None:
    change_config(copy, model_type="vit", architectures=["ViTModel"])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(copy)


def test_an_unknown_architecture_is_refused(copy: Path) -> None:
    change_config(copy, model_type="llama99")
    with pytest.raises(ModelError, match="llama99"):
        shape_of(resolve(str(copy)))


def test_code_from_the_models_own_folder_is_never_run(copy: Path) -> None:
    change_config(copy, model_type="mystery", auto_map={"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"})
    (copy / "code.py").write_text(f"open({str(copy / 'ran')!r}, 'w').close()\nclass C: pass\nclass M: pass\n")
    for attempt in (load, lambda folder: shape_of(resolve(str(folder)))):
        with pytest.raises(ModelError, match="code from its own repository"):
            attempt(copy)
    assert not (copy / "ran").exists()


def test_a_model_the_hub_cannot_give_is_named_with_what_to_check() -> None:
    recipe = Recipe(device="cpu")
    with pytest.raises(ModelError, match="There is no model org/none") as caught:
        load_model(resolve("org/none"), recipe, choose_compute(recipe))
    assert "tunesmith login" in caught.value.fix


def test_a_hub_model_with_pickles_only_is_named_as_such() -> None:
    error = model_error(
        ModelSource("org/m", None, "org/m"), OSError("org/m does not appear to have a file named model.safetensors")
    )
    assert "no .safetensors weights" in error.what


def test_an_error_without_text_still_says_its_kind() -> None:
    assert "KeyError" in model_error(ModelSource("m", None, "m"), KeyError()).what
