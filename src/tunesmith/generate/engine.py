"""Greedy and sampled generation, batched: prompts of token ids in, answers of token ids out."""

from collections.abc import Sequence
from typing import Any

from tunesmith.generate.cached import rows_that_fit
from tunesmith.generate.decoder import Decoder
from tunesmith.generate.fit import store_shape
from tunesmith.generate.sampling import Sampling

__all__ = ["Decoder", "Sampling", "generate"]

TOGETHER = 40
"""Answers decoded at a time, at most."""


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    stop_ids: Sequence[int],
    pad_id: int,
    sampling: Sampling,
    *,
    context: int | None = None,
    base: bool = False,
) -> list[list[int]]:
    """The answer to each prompt, its stop token included where it came to one.

    Args:
        model: a causal language model with generation; its mode is as before afterwards.
        prompts: token ids of any lengths. context: see `Decoder`. base: answer without the adapter.
    """
    if not prompts:
        return []
    was_training = model.training
    if was_training:
        model.eval()
    try:
        longest = max(map(len, prompts)) + sampling.max_new_tokens
        longest = longest if context is None else min(longest, context)
        slots = min(len(prompts), _together(model, longest))
        return Decoder(model, stop_ids, pad_id, slots, context=context, base=base).answer(prompts, sampling)
    finally:
        if was_training:
            model.train()


def _together(model: Any, longest: int) -> int:
    """Answers decoded at a time, given the tokens of the longest with its prompt."""
    shape = store_shape(model)
    return TOGETHER if isinstance(shape, str) else min(TOGETHER, rows_that_fit(model, shape, longest))
