"""How far two models agree: their distributions of the next token over the same conversations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LIMITS = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}
"""The largest mean divergence of a merged model from the live one, in nats, that its weights' type explains."""


@dataclass(frozen=True)
class Agreement:
    """kl, worst_kl: divergence KL(live ‖ other) of the next token, in nats, mean and largest. top1: share of positions with the
    same likeliest token. tokens: positions compared."""

    kl: float
    worst_kl: float
    top1: float
    tokens: int


@torch.no_grad()
def next_token_logs(model: Any, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """Log-probabilities of the next token at every position of each row, fp32 ``[n, V]`` on the CPU."""
    device = next(model.parameters()).device
    logs = []
    for row in rows:
        logits = model(input_ids=torch.tensor([list(row)], device=device), use_cache=False).logits[0]
        logs.append(torch.log_softmax(logits.float(), -1).cpu())
    return logs


def compare(live: Sequence[Tensor], other: Sequence[Tensor]) -> Agreement:
    """Agreement of two models' `next_token_logs` for the same rows."""
    pairs = [(a.double(), b.double()) for a, b in zip(live, other, strict=True)]
    kl = torch.cat([torch.sum(a.exp() * (a - b), -1).clamp(min=0) for a, b in pairs])  # never negative but for rounding
    same = torch.cat([a.argmax(-1) == b.argmax(-1) for a, b in pairs])
    return Agreement(float(kl.mean()), float(kl.max()), float(same.float().mean()), len(kl))
