"""How many tokens a model can see."""

from typing import Any

from tunesmith.base.catalog import ModelSource
from tunesmith.errors import ModelError

UNBOUNDED = 2**31
"""Of a config that names no number of positions, such as that of a state space model."""


def causal_config(source: ModelSource) -> Any:
    """The transformers config of a model: all that is known of it before the room that builds models is imported.

    Raises:
        ModelError: there is no such model, or its config is not one of a causal language model.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    try:
        config = AutoConfig.from_pretrained(source.path, revision=source.revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StrictDataclassError) as error:
        from tunesmith.base.load import model_error  # what is wrong with models is told there

        raise model_error(source, error) from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"{source.base} cannot be loaded: its config.json is of the kind {config.model_type!r}, which writes no text.",
            "Use a causal language model in the transformers format.",
        )
    return config


def positions_of(config: Any) -> int:
    """Positions of a transformers config, of its text model if it has several."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or UNBOUNDED


def context_of(positions: int, tokenizer: Any) -> int:
    """Tokens a model can see, prompt and answer together: its positions, or fewer where its tokenizer says so."""
    return int(min(positions, tokenizer.model_max_length))


def positions_in(source: ModelSource) -> int:
    """Positions of a model, by its config alone. Raises ModelError as `causal_config` does."""
    return positions_of(causal_config(source))
