"""Proves that a streamed layer says when its weights are needed, in forward and when it is recomputed (the streaming itself:
tests/gpu)."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tunesmith.base.stream import announce_recomputed
from tunesmith.errors import MachineError

LAYERS = 5


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=LAYERS, num_attention_heads=2, num_key_value_heads=1
    )
    return LlamaForCausalLM(config).train()


def announced(model):
    calls = []
    for number, layer in enumerate(model.model.layers):
        layer.announce = lambda number=number: calls.append(number)
    return calls


def test_layers_announce_themselves_forwards_and_then_backwards(model):
    calls = announced(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    announce_recomputed(model)
    model(input_ids=torch.tensor([[3, 4, 5]])).logits.sum().backward()
    assert calls == [*range(LAYERS), *reversed(range(LAYERS))]


def test_gradients_are_those_of_the_layers_as_they_were(model):
    ids = torch.tensor([[3, 4, 5]])
    model(input_ids=ids).logits.square().sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    announced(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    announce_recomputed(model)
    model(input_ids=ids).logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


def test_a_streamed_layer_that_is_not_recomputed_is_refused(model):
    announced(model)
    with pytest.raises(MachineError, match="every layer recomputed"):
        announce_recomputed(model)


def test_a_model_that_is_not_streamed_is_left_alone(model):
    announce_recomputed(model)
    assert not hasattr(model.model.layers[0], "announce")
