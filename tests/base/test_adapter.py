"""Proves that an adapter is attached where it should be, computes what peft computes, and is opened whole or not at all."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from tunesmith.base.adapter import adapter_parameters, attach, open_adapter, target_names
from tunesmith.base.catalog import resolve
from tunesmith.base.lean import speed_up
from tunesmith.base.linear import lean_layers
from tunesmith.base.load import choose_compute, load_model
from tunesmith.errors import AdapterError
from tunesmith.recipe import Recipe

LEAVES = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
IDS = torch.tensor([[1, 40, 7, 99, 250, 3, 18, 2], [5, 6, 7, 8, 9, 10, 11, 12]])
PLAIN: dict[str, Any] = {"load_in_4bit": False}


def base(folder: Path, **settings: Any) -> tuple[Any, Recipe]:
    recipe = Recipe.of({"device": "cpu", "lora_dropout": 0.0, **settings})
    return load_model(resolve(str(folder)), recipe, choose_compute(recipe)), recipe


def attached(folder: Path, **settings: Any) -> Any:
    """An adapter that does something: B is zero after attaching, so it is drawn too."""
    model, recipe = base(folder, **settings)
    peft_model = attach(model, recipe, "org/tiny", "main")
    torch.manual_seed(1)
    for name, parameter in adapter_parameters(peft_model).items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return peft_model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def plain_peft(ours: Any, folder: Path, saved: Path, **settings: Any) -> Any:
    """The same adapter over the same base, without a line of tunesmith in its forward."""
    ours.save_pretrained(saved, save_embedding_layers=False)
    model, _ = base(folder, **settings)
    return PeftModel.from_pretrained(model, saved).eval()


# ---- what gets an adapter


def test_all_linear_is_every_linear_of_the_decoder_and_not_the_head(tiny_model_folder: Path) -> None:
    model, _ = base(tiny_model_folder)
    assert target_names(model, "all-linear") == LEAVES
    peft_model = attached(tiny_model_folder)
    assert len(lean_layers(peft_model)) == 14
    assert not any("lm_head" in name for name in adapter_parameters(peft_model))


def test_named_targets_alone_are_adapted(tiny_model_folder: Path) -> None:
    peft_model = attached(tiny_model_folder, lora_target_modules="q_proj,v_proj")
    names = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in adapter_parameters(peft_model)}
    assert names == {"q_proj", "v_proj"}


def test_a_target_may_be_a_path(tiny_model_folder: Path) -> None:
    model, _ = base(tiny_model_folder)
    assert target_names(model, ["layers.1.mlp.up_proj"]) == ["layers.1.mlp.up_proj"]


@pytest.mark.parametrize(("wanted", "near"), [("q_prj", "q_proj"), ("up-proj", "up_proj"), ("W_pack", None), ("lm_head", None)])
def test_a_target_that_matches_nothing_is_refused_with_the_near_name(
    tiny_model_folder: Path, wanted: str, near: str | None
) -> None:
    model, _ = base(tiny_model_folder)
    with pytest.raises(AdapterError) as caught:
        target_names(model, ["q_proj", wanted])
    assert repr(wanted) in caught.value.what
    if near:
        assert f"did you mean {near}?" in caught.value.what
    assert all(leaf in caught.value.fix for leaf in LEAVES)


def test_the_end_of_a_name_is_no_name(tiny_model_folder: Path) -> None:
    model, _ = base(tiny_model_folder)
    with pytest.raises(AdapterError):
        target_names(model, ["proj"])


def test_attaching_twice_is_refused(tiny_model_folder: Path) -> None:
    model, recipe = base(tiny_model_folder)
    attach(model, recipe, "x", None)
    with pytest.raises(AdapterError, match="has an adapter already"):
        attach(model, recipe, "x", None)


def test_attaching_to_an_adapted_model_is_refused(tiny_model_folder: Path) -> None:
    model, recipe = base(tiny_model_folder)
    with pytest.raises(AdapterError, match="has an adapter already"):
        attach(attach(model, recipe, "x", None), recipe, "x", None)


# ---- how it starts


def test_the_seed_decides_the_adapter(tiny_model_folder: Path) -> None:
    def drawn(seed: int) -> dict[str, torch.Tensor]:
        model, recipe = base(tiny_model_folder, seed=seed)
        torch.rand(seed + 3)  # whatever was drawn before
        return {n: p.detach() for n, p in adapter_parameters(attach(model, recipe, "x", None)).items() if "lora_A" in n}

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert len(first) == 14
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_b_starts_at_zero_so_the_model_starts_as_the_base(tiny_model_folder: Path) -> None:
    model, recipe = base(tiny_model_folder)
    before = logits(model)
    peft_model = attach(model, recipe, "x", None).eval()
    assert all(not p.any() for name, p in adapter_parameters(peft_model).items() if "lora_B" in name)
    torch.testing.assert_close(logits(peft_model), before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_the_adapter_is_trained_and_in_float32(tiny_model_folder: Path, dtype: str) -> None:
    peft_model = attached(tiny_model_folder, dtype=dtype, lora_r=4)
    parameters = adapter_parameters(peft_model)
    assert all("lora_" in name for name in parameters)
    assert {p.dtype for p in parameters.values()} == {torch.float32}
    per_layer = 4 * ((64 + 64) * 2 + (64 + 32) * 2 + (64 + 128) * 3)
    assert sum(p.numel() for p in parameters.values()) == 2 * per_layer


def test_the_adapter_names_its_base_and_revision(tiny_model_folder: Path) -> None:
    config = attached(tiny_model_folder).peft_config["default"]
    assert (config.base_model_name_or_path, config.revision, config.task_type) == ("org/tiny", "main", "CAUSAL_LM")


# ---- the lean path is peft's own path


def test_linears_that_read_the_same_input_are_grouped(tiny_model_folder: Path) -> None:
    peft_model = attached(tiny_model_folder)
    said = speed_up(peft_model, torch.float32, keep=True)
    assert said == "14 linears in 8 groups, weights kept dequantised; 5 norms, 2 layers, 4 of 4 blocks"
    layers = lean_layers(peft_model)
    groups: dict[int, list[str]] = {}
    for name, layer in layers.items():
        groups.setdefault(id(layer.group), []).append(name.rsplit(".", 1)[-1])
    assert sorted(map(tuple, groups.values())) == sorted(
        [("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)] * 2
    )


BASES = [({}, True), ({}, False), (PLAIN, True), (PLAIN, False), ({"bnb_4bit_use_double_quant": False}, True)]
NAMES = ["NF4 kept", "NF4 on the fly", "plain kept", "plain", "single quantisation kept"]


@pytest.mark.parametrize(("settings", "keep"), BASES, ids=NAMES)
def test_the_fast_forward_equals_pefts_own(tiny_model_folder: Path, tmp_path: Path, settings: dict[str, Any], keep: bool) -> None:
    ours = attached(tiny_model_folder, **settings)
    theirs = plain_peft(ours, tiny_model_folder, tmp_path, **settings)
    assert "groups" in speed_up(ours, torch.float32, keep)
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("settings", "keep"), BASES, ids=NAMES)
def test_without_its_adapter_it_equals_the_base(tiny_model_folder: Path, settings: dict[str, Any], keep: bool) -> None:
    model, _ = base(tiny_model_folder, **settings)
    ours = attached(tiny_model_folder, **settings)
    speed_up(ours, torch.float32, keep)
    tuned = logits(ours)
    with ours.disable_adapter():
        torch.testing.assert_close(logits(ours), logits(model), rtol=0, atol=1e-5)
    assert torch.equal(logits(ours), tuned), "the adapter did not come back"
    assert float((tuned - logits(model)).abs().max()) > 0.01, "the adapter does nothing, so nothing was compared"


@pytest.mark.parametrize(("settings", "keep"), BASES, ids=NAMES)
def test_its_gradients_equal_pefts_own(tiny_model_folder: Path, tmp_path: Path, settings: dict[str, Any], keep: bool) -> None:
    def gradients(model: Any) -> dict[str, torch.Tensor]:
        model(input_ids=IDS, labels=IDS).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if "lora_" in name}

    ours = attached(tiny_model_folder, **settings)
    theirs = plain_peft(ours, tiny_model_folder, tmp_path, **settings)
    for name, parameter in theirs.named_parameters():
        parameter.requires_grad_("lora_" in name)
    speed_up(ours, torch.float32, keep)
    expected, got = gradients(theirs), gradients(ours)
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_rank_stabilised_scaling_equals_pefts_own(tiny_model_folder: Path, tmp_path: Path) -> None:
    ours = attached(tiny_model_folder, use_rslora=True, lora_r=4, lora_alpha=16)
    layer = next(iter(lean_layers(ours).values()))
    assert layer.scaling["default"] == 16 / 4**0.5
    theirs = plain_peft(ours, tiny_model_folder, tmp_path)
    speed_up(ours, torch.float32, keep=True)
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_bias": "all"}, {"load_in_8bit": True}], ids=str)
def test_what_has_no_lean_path_keeps_pefts_and_still_trains(tiny_model_folder: Path, settings: dict[str, Any]) -> None:
    peft_model = attached(tiny_model_folder, **settings)
    said = speed_up(peft_model, torch.float32, keep=True)
    assert said.startswith("peft's own layers")
    assert all(layer.group is None for layer in lean_layers(peft_model).values())
    peft_model(input_ids=IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None for name, p in adapter_parameters(peft_model).items() if "lora_" in name)


def test_dora_equals_pefts_own(tiny_model_folder: Path, tmp_path: Path) -> None:
    ours = attached(tiny_model_folder, use_dora=True)
    theirs = plain_peft(ours, tiny_model_folder, tmp_path)
    speed_up(ours, torch.float32, keep=True)
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=1e-5)


def test_targets_that_share_no_input_run_alone(tiny_model_folder: Path, tmp_path: Path) -> None:
    ours = attached(tiny_model_folder, lora_target_modules=["q_proj", "v_proj", "down_proj"])
    theirs = plain_peft(ours, tiny_model_folder, tmp_path)
    assert speed_up(ours, torch.float32, keep=True).startswith("6 linears in 4 groups")
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=1e-5)


# ---- opening


@pytest.fixture
def saved(tiny_model_folder: Path, tmp_path: Path) -> Path:
    attached(tiny_model_folder).save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    return tmp_path / "adapter"


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Set (or with None remove) tensors whose names contain these words (dots written as underscores stay)."""
    path = folder / "adapter_model.safetensors"
    held = load_file(path)
    for word, tensor in tensors.items():
        name = next((name for name in sorted(held) if word in name), f"base_model.model.{word}.lora_A.weight")
        held.pop(name, None)
        if tensor is not None:
            held[name] = tensor
    save_file(held, path)


def test_an_adapter_that_peft_saved_opens_and_answers_as_it_did(tiny_model_folder: Path, saved: Path) -> None:
    model, _ = base(tiny_model_folder)
    theirs = PeftModel.from_pretrained(base(tiny_model_folder)[0], saved).eval()
    ours = open_adapter(model, saved)
    assert not ours.training
    assert adapter_parameters(ours) == {}
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=1e-5)
    speed_up(ours, torch.float32, keep=True)
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"q_proj": None}, r"misses .*layers\.0\.self_attn\.q_proj\.lora_A"),
        ({"stray": torch.zeros(8, 64)}, r"has, unlike this base model, .*stray"),
        ({"up_proj": torch.zeros(8, 63)}, r"has in another shape .*layers\.0\.mlp\.up_proj\.lora_A"),
        ({"k_proj": torch.full((8, 64), float("nan"))}, r"not finite in .*layers\.0\.self_attn\.k_proj\.lora_A"),
        ({"k_proj": torch.full((8, 64), float("inf"))}, r"not finite in .*layers\.0\.self_attn\.k_proj\.lora_A"),
    ],
    ids=["missing", "extra", "misshapen", "NaN", "infinite"],
)
def test_an_adapter_with_a_wrong_tensor_is_refused_by_its_name(
    tiny_model_folder: Path, saved: Path, tensors: dict[str, torch.Tensor | None], says: str
) -> None:
    change(saved, **tensors)
    model, _ = base(tiny_model_folder)
    with pytest.raises(AdapterError, match=says) as caught:
        open_adapter(model, saved)
    assert str(saved) in caught.value.what


def test_an_adapter_of_another_rank_than_its_config_is_refused(tiny_model_folder: Path, saved: Path) -> None:
    path = saved / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "r": 4}))
    with pytest.raises(AdapterError, match=r"in another shape .* and 27 more"):
        open_adapter(base(tiny_model_folder)[0], saved)


def test_an_adapter_of_parameters_this_model_has_not_is_refused(tiny_model_folder: Path, saved: Path) -> None:
    path = saved / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "target_parameters": ["experts.nothing"]}))
    with pytest.raises(AdapterError, match=r"does not fit: target_parameters=\['experts.nothing'\]"):
        open_adapter(base(tiny_model_folder)[0], saved)


def test_a_folder_without_adapter_is_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"no adapter_config\.json"):
        open_adapter(base(tiny_model_folder)[0], tmp_path)


def test_pickled_adapter_weights_are_never_opened(tiny_model_folder: Path, saved: Path) -> None:
    (saved / "adapter_model.safetensors").rename(saved / "adapter_model.bin")
    with pytest.raises(AdapterError, match="no readable LoRA adapter"):
        open_adapter(base(tiny_model_folder)[0], saved)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("adapter_model.safetensors", b"short"),
        ("adapter_config.json", b"{"),
        ("adapter_config.json", b"[]"),
        ("adapter_config.json", b"{}"),
        ("adapter_config.json", b'{"peft_type": "LORA", "target_modules": ["nothing_like_it"]}'),
        ("adapter_config.json", b'{"peft_type": "IA3", "target_modules": ["q_proj"]}'),
    ],
    ids=["weights", "broken config", "list", "empty config", "targets of another model", "another method"],
)
def test_an_adapter_that_cannot_be_read_is_refused(tiny_model_folder: Path, saved: Path, name: str, content: bytes) -> None:
    (saved / name).write_bytes(content)
    with pytest.raises(AdapterError):
        open_adapter(base(tiny_model_folder)[0], saved)


def test_a_lora_that_plain_peft_made_opens(tiny_model_folder: Path, tmp_path: Path) -> None:
    model, _ = base(tiny_model_folder)
    theirs = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)).eval()
    theirs.save_pretrained(tmp_path, save_embedding_layers=False)
    ours = open_adapter(base(tiny_model_folder)[0], tmp_path)
    speed_up(ours, torch.float32, keep=True)
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=1e-5)


def test_eight_bit_weights_compute_what_they_did_before_speeding_up(tiny_model_folder: Path) -> None:
    peft_model = attached(tiny_model_folder, load_in_8bit=True)
    before = logits(peft_model)
    speed_up(peft_model, torch.float32, keep=True)
    torch.testing.assert_close(logits(peft_model), before, rtol=1e-2, atol=2e-2)
