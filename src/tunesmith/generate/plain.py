"""Decoding with the model's own cache, one answer at a time: right for every family that transformers can run."""

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from tunesmith.base.adapter import without_adapter

CACHES = ("past_key_values", "cache_params")
"""What families call the cache that they take and return."""


class PlainRows:
    """Rows of growing answers as `cached.CachedRows`, each with a cache of its own, made by the model."""

    def __init__(self, model: Any, base: bool) -> None:
        self.peft_model = model
        self.model = without_adapter(model)
        self.disable = base and hasattr(model, "disable_adapter")
        self.device = self.model.get_input_embeddings().weight.device
        accepted = inspect.signature(self.model.forward).parameters
        self.last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self.caches: list[dict[str, Any]] = []

    def begin(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """New rows for these prompts; logits ``[n, V]`` after each."""
        first = len(self.caches)
        self.caches += [{} for _ in prompts]
        return self._forward(range(first, len(self.caches)), prompts)

    def step(self, tokens: Sequence[int]) -> Tensor:
        """One more token for each row; logits ``[n, V]`` after it."""
        return self._forward(range(len(tokens)), [[token] for token in tokens])

    def leave(self, row: int) -> None:
        """End a row; the last one takes its place."""
        self.caches[row] = self.caches[-1]
        self.caches.pop()

    def _forward(self, rows: Sequence[int], ids: Sequence[Sequence[int]]) -> Tensor:
        logits = []
        with self.peft_model.disable_adapter() if self.disable else nullcontext():
            for row, given in zip(rows, ids):
                input_ids = torch.tensor([list(given)], device=self.device)
                output = self.model(input_ids=input_ids, use_cache=True, **self.caches[row], **self.last_only)
                self.caches[row] = {name: output[name] for name in CACHES if output.get(name) is not None}
                logits.append(output.logits[0, -1])
        return torch.stack(logits)
