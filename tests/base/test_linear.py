"""Proves that linears computed together give each caller its own output, whatever the order and the type."""

import gc
import weakref
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from tunesmith.base import linear
from tunesmith.base.linear import CUSTOM_MODULES, LeanLinear, LeanLinear4bit, LinearGroup, lean_layers, watch_inputs


class Block(nn.Module):
    """Three linears of one input, as q, k and v are; the middle one without bias."""

    def __init__(self, four_bits: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name, out, bias in (("q", 64, True), ("k", 32, False), ("v", 32, True)):
            plain = nn.Linear(64, out, bias=bias)
            if four_bits:
                packed = bnb.nn.Linear4bit(64, out, bias=bias, compute_dtype=torch.float32, quant_type="nf4")
                packed.load_state_dict(plain.state_dict())
                plain = packed.to("cpu")
            setattr(self, name, plain)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.q(x), self.k(x), self.v(x)


def adapted(four_bits: bool, **settings: Any) -> tuple[Any, list[Any]]:
    """The block with a LoRA that does something, and its lean layers."""
    config = LoraConfig(r=4, target_modules=["q", "k", "v"], init_lora_weights=False, **settings)
    config._register_custom_module(CUSTOM_MODULES)
    torch.manual_seed(1)
    model = get_peft_model(Block(four_bits), config).eval()
    return model, list(lean_layers(model).values())


def grouped(layers: list[Any], keep: bool, dtype: torch.dtype = torch.float32) -> LinearGroup:
    group = LinearGroup(layers, "default", dtype, keep)
    for number, layer in enumerate(layers):
        layer.group, layer.member = group, number
    return group


KINDS = [(False, True), (False, False), (True, True), (True, False)]


def test_each_kind_of_linear_gets_its_lean_layer() -> None:
    assert {type(layer) for layer in adapted(False)[1]} == {LeanLinear}
    assert {type(layer) for layer in adapted(True)[1]} == {LeanLinear4bit}


def test_lean_layers_are_found_by_name() -> None:
    names = [name.rsplit(".", 1)[-1] for name in lean_layers(adapted(False)[0])]
    assert names == ["q", "k", "v"]


@pytest.mark.parametrize(("four_bits", "keep"), KINDS)
def test_a_group_gives_what_each_layer_gave_alone(four_bits: bool, keep: bool) -> None:
    model, layers = adapted(four_bits)
    x = torch.randn(2, 5, 64)
    with torch.no_grad():
        alone = model(x)
        grouped(layers, keep)
        together = model(x)
    for got, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("four_bits", "keep"), KINDS)
def test_without_adapter_a_group_gives_the_base(four_bits: bool, keep: bool) -> None:
    model, layers = adapted(four_bits)
    x = torch.randn(3, 64)
    with torch.no_grad():
        expected = Block(four_bits)(x)
        grouped(layers, keep)
        with model.disable_adapter():
            got = model(x)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_members_may_be_called_in_any_order_and_again() -> None:
    _, (q, k, v) = adapted(False)
    x, y = torch.randn(3, 64), torch.randn(3, 64)
    with torch.no_grad():
        expected = {(name, n): layer(value) for name, layer in (("q", q), ("k", k), ("v", v)) for n, value in ((0, x), (1, y))}
        grouped([q, k, v], keep=True)
        for name, layer, n in [("v", v, 0), ("q", q, 0), ("q", q, 0), ("k", k, 1), ("k", k, 0), ("q", q, 1), ("v", v, 1)]:
            torch.testing.assert_close(layer((x, y)[n]), expected[name, n], rtol=0, atol=1e-5)


def test_an_input_changed_in_place_between_two_calls_of_one_member_is_read_anew() -> None:
    _, (q, k, v) = adapted(False)
    x = torch.randn(3, 64)
    grouped([q, k, v], keep=True)
    with torch.no_grad():
        first = q(x).clone()
        k(x), v(x)
        x.mul_(2)
        assert not torch.allclose(q(x), first)


def test_after_all_members_were_called_the_input_is_let_go() -> None:
    _, layers = adapted(False)
    grouped(layers, keep=True)
    x = torch.randn(3, 64)
    watched = weakref.ref(x)
    with torch.no_grad():
        for layer in layers:
            layer(x)
    del x
    gc.collect()
    assert watched() is None


def test_kept_weights_of_plain_linears_are_stored_once() -> None:
    _, layers = adapted(False)
    group = grouped(layers, keep=True)
    assert group.kept is not None
    assert group.kept.shape == (128, 64)
    storage = group.kept.untyped_storage().data_ptr()
    assert all(layer.base_layer.weight.untyped_storage().data_ptr() == storage for layer in layers)


def test_weights_that_are_not_kept_are_made_anew_and_equal() -> None:
    _, layers = adapted(True)
    kept, lean = LinearGroup(layers, "default", torch.float32, True), LinearGroup(layers, "default", torch.float32, False)
    assert lean.kept is None
    first, again = list(lean.weight()), list(lean.weight())
    assert torch.equal(torch.cat(first), torch.cat(list(kept.weight())))
    assert first[0] is not again[0]


@pytest.mark.parametrize(("four_bits", "keep"), KINDS)
def test_where_there_is_room_every_factor_stands_behind_its_rows_as_it_is_now(
    monkeypatch: pytest.MonkeyPatch, four_bits: bool, keep: bool
) -> None:
    monkeypatch.setattr(linear, "_has_room", lambda weight: True)  # as on a GPU
    _, layers = adapted(four_bits)
    group = grouped(layers, keep)
    frozen = torch.cat([linear._whole(layer.base_layer, torch.float32) for layer in layers])
    for factor in (1.0, -3.0):
        lora_B = [layer.lora_B["default"].weight.data.mul_(factor) for layer in layers]
        expected = torch.cat([frozen, F.pad(torch.block_diag(*lora_B), (0, group.room - 12))], dim=1)
        assert torch.equal(torch.cat(list(group.weight())), expected)


def test_a_factor_whose_copy_is_at_home_is_not_copied_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_has_room", lambda weight: True)
    _, layers = adapted(True)
    group = grouped(layers, keep=True)
    for number, factor in enumerate(layer.lora_B["default"].weight for layer in layers):
        factor.compute_copy = factor.home
        factor.home.fill_(number)
    [wide] = group.weight()
    assert torch.equal(wide[:, 64:68].mean(dim=1), torch.zeros(128))
    assert torch.equal(wide[64:96, 68:72], torch.ones(32, 4))
    assert torch.equal(wide[96:, 72:76], torch.full((32, 4), 2.0))


def test_a_bias_that_one_member_lacks_is_zero_for_it() -> None:
    _, layers = adapted(False)
    bias = LinearGroup(layers, "default", torch.float32, False).bias
    assert bias is not None
    assert torch.equal(bias[64:96], torch.zeros(32))
    assert torch.equal(bias[:64], layers[0].base_layer.bias)


def test_no_bias_at_all_is_none() -> None:
    _, layers = adapted(False)
    assert LinearGroup(layers[1:2], "default", torch.float32, False).bias is None


def test_dropout_acts_in_training_only() -> None:
    model, layers = adapted(False, lora_dropout=0.5)
    grouped(layers, keep=True)
    x = torch.randn(4, 64)
    with torch.no_grad():
        assert torch.equal(model(x)[0], model(x)[0])
        model.train()
        assert not torch.equal(model(x)[0], model(x)[0])
        torch.manual_seed(3)
        first = model(x)[0]
        torch.manual_seed(3)
        assert torch.equal(model(x)[0], first)


def test_a_merged_layer_uses_pefts_own_forward() -> None:
    model, layers = adapted(False)
    x = torch.randn(3, 64)
    with torch.no_grad():
        expected = model(x)
        grouped(layers, keep=False)
        model.merge_adapter()
        for got, value in zip(model(x), expected, strict=True):
            torch.testing.assert_close(got, value, rtol=0, atol=1e-5)


def test_inputs_are_watched_by_identity_and_no_longer() -> None:
    model, _ = adapted(False)
    layers = lean_layers(model)
    x = torch.randn(2, 64)
    with watch_inputs(layers) as calls, torch.no_grad():
        model(x)
    assert [name.rsplit(".", 1)[-1] for name, _ in calls] == ["q", "k", "v"]
    assert len({identity for _, identity in calls}) == 1
    with torch.no_grad():
        model(x)
    assert len(calls) == 3
