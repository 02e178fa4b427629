"""Proves that there is one answer to how many tokens a model can see."""

from types import SimpleNamespace

import pytest
from transformers import GPT2Config, LlamaConfig, LlavaConfig, MambaConfig

from tunesmith.base.context import UNBOUNDED, context_of, positions_of


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        (LlamaConfig(max_position_embeddings=300), 300),
        (GPT2Config(n_positions=200), 200),
        (LlavaConfig(text_config=LlamaConfig(max_position_embeddings=100)), 100),
        (MambaConfig(), UNBOUNDED),
    ],
    ids=["llama", "another name for it", "inside a model of several", "none"],
)
def test_positions_are_those_of_the_config(config, positions):
    assert positions_of(config) == positions


@pytest.mark.parametrize(("of_tokenizer", "context"), [(128, 128), (4096, 300), (int(1e30), 300), (128.0, 128)])
def test_the_smaller_of_model_and_tokenizer_counts(of_tokenizer, context):
    seen = context_of(300, SimpleNamespace(model_max_length=of_tokenizer))
    assert (seen, type(seen)) == (context, int)
