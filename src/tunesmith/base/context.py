"""How many tokens a model can see."""

from typing import Any

UNBOUNDED = 2**31
"""Of a config that names no number of positions, such as that of a state space model."""


def positions_of(config: Any) -> int:
    """Positions of a transformers config, of its text model if it has several."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or UNBOUNDED


def context_of(positions: int, tokenizer: Any) -> int:
    """Tokens a model can see, prompt and answer together: its positions, or fewer where its tokenizer says so."""
    return int(min(positions, tokenizer.model_max_length))
