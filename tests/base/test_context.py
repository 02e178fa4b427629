"""Proves that there is one answer to how many tokens a model can see."""

from types import SimpleNamespace

import pytest
from transformers import GPT2Config, LlamaConfig, LlavaConfig, MambaConfig

from tunesmith.base.catalog import ModelSource, resolve
from tunesmith.base.context import UNBOUNDED, context_of, positions_in, positions_of
from tunesmith.errors import ModelError


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


def test_a_models_positions_are_known_from_its_config_alone(tiny_model_folder, tmp_path):
    (tmp_path / "config.json").write_bytes((tiny_model_folder / "config.json").read_bytes())
    assert positions_in(ModelSource(str(tmp_path), None, "x")) == positions_in(resolve(str(tiny_model_folder))) == 256


@pytest.mark.parametrize(
    "config", ["{", '{"model_type": "vit"}', '{"model_type": "nobody-knows"}', '{"model_type": "llama", "hidden_size": "x"}']
)
def test_a_config_that_is_not_one_of_a_causal_language_model_is_refused(config, tmp_path):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelError, match="org/odd"):
        positions_in(ModelSource(str(tmp_path), None, "org/odd"))
