"""Proves that swapping norms changes no output, for every way families store the weight, and touches nothing else."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig, Qwen3Config

from tunesmith.base.norm import LeanRMSNorm, swap_norms

SMALL: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
}
FAMILIES = [
    (LlamaConfig(**SMALL), 5, 0.0),
    (Gemma2Config(**SMALL), 9, 1.0),  # stores its weight minus one, and norms after each part as well
    (Qwen3Config(**SMALL), 9, 0.0),  # norms queries and keys per head
]


def frozen(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    """A model of this family whose norm weights are anything but ones or zeros."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.uniform_(0.2, 1.8)
    return model


@pytest.mark.parametrize(("config", "count", "offset"), FAMILIES, ids=lambda v: getattr(v, "model_type", ""))
def test_every_norm_of_the_family_is_swapped_and_the_outputs_stay(config: Any, count: int, offset: float) -> None:
    model, ids = frozen(config), torch.arange(24).view(2, 12)
    with torch.no_grad():
        before = model(input_ids=ids).logits
        assert swap_norms(model) == count
        after = model(input_ids=ids).logits
    assert {norm.offset for norm in model.modules() if isinstance(norm, LeanRMSNorm)} == {offset}
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("config", "count", "offset"), FAMILIES, ids=lambda v: getattr(v, "model_type", ""))
def test_gradients_stay_too(config: Any, count: int, offset: float) -> None:
    def gradient(model: Any) -> torch.Tensor:
        embeds = model.get_input_embeddings()(torch.arange(24).view(2, 12)).detach().requires_grad_()
        model(inputs_embeds=embeds).logits.square().mean().backward()
        return embeds.grad

    model = frozen(config)
    before = gradient(model)
    swap_norms(model)
    torch.testing.assert_close(gradient(model), before, rtol=1e-3, atol=1e-6)


def test_the_parameters_keep_their_names_and_values() -> None:
    model = frozen(FAMILIES[1][0])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    swap_norms(model)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_in_bfloat16_norms_are_swapped_and_the_outputs_stay_near() -> None:
    model, ids = frozen(FAMILIES[0][0], torch.bfloat16), torch.arange(24).view(2, 12)
    with torch.no_grad():
        before = model(input_ids=ids).logits
        assert swap_norms(model) == 5
        torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=2e-2, atol=2e-2)


def test_a_layer_norm_is_not_swapped() -> None:
    model = frozen(GPT2Config(vocab_size=300, n_embd=64, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2))
    assert swap_norms(model) == 0
    assert any(isinstance(module, nn.LayerNorm) for module in model.modules())


def test_a_layer_norm_without_bias_is_not_swapped() -> None:
    model = nn.Sequential(nn.LayerNorm(64, bias=False)).requires_grad_(False)
    assert swap_norms(model) == 0


def test_a_norm_that_is_trained_is_not_swapped() -> None:
    model = frozen(FAMILIES[0][0])
    model.model.norm.weight.requires_grad_(True)
    assert swap_norms(model) == 4
    assert not isinstance(model.model.norm, LeanRMSNorm)


def test_a_norm_that_only_looks_like_one_is_not_swapped() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.variance_epsilon = nn.Parameter(torch.ones(64), requires_grad=False), 1e-6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.weight * x / (x.abs().mean(-1, keepdim=True) + self.variance_epsilon)

    model = nn.Sequential(Odd())
    assert swap_norms(model) == 0
    assert isinstance(model[0], Odd)


def test_swapping_twice_swaps_nothing_more() -> None:
    model = frozen(FAMILIES[0][0])
    assert swap_norms(model) == 5
    assert swap_norms(model) == 0
