"""Greedy and sampled generation, batched: prompts of token ids in, answers of token ids out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Sampling:
    """max_new_tokens: at most so many. temperature: 0 for greedy. top_p, top_k: nucleus and top-k limits (0 for none)."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0


@torch.no_grad()
def generate(
    model: Any, prompts: Sequence[Sequence[int]], stop_ids: Sequence[int], pad_id: int, sampling: Sampling
) -> list[list[int]]:
    """The answer to each prompt, its stop token included where it came to one.

    Args:
        model: a causal language model with generation, in eval mode.
        prompts: token ids of any lengths; they are padded on the left to one batch.
    """
    device = next(model.parameters()).device
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[pad_id] * (longest - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    sampled = sampling.temperature > 0
    options: dict[str, Any] = {"do_sample": sampled, "temperature": None, "top_p": None, "top_k": None}
    if sampled:
        options.update(temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k)
    was_training = model.training
    model.eval()
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=list(stop_ids),
        pad_token_id=pad_id,
        **options,
    )
    model.train(was_training)
    return [_until_stop(row, stop_ids) for row in output[:, longest:].tolist()]


def _until_stop(ids: list[int], stop_ids: Sequence[int]) -> list[int]:
    for position, token in enumerate(ids):
        if token in stop_ids:
            return ids[: position + 1]
    return ids
