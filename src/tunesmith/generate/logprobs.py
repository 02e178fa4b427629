"""How likely a model held a token that it wrote, and the likeliest others: before temperature, top-k and top-p."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LOWEST = -9999.0
"""Told of a token that has no probability at all: JSON knows no minus infinity."""


@dataclass(frozen=True)
class Logprob:
    """A token's id, and the natural logarithm of its probability."""

    token: int
    logprob: float


@dataclass(frozen=True)
class Chosen(Logprob):
    """A token of an answer. top: the likeliest tokens in its place, likeliest first; it may be one of them."""

    top: tuple[Logprob, ...] = ()


def chosen_logprobs(logits: Tensor, tokens: Sequence[int], tops: Sequence[int]) -> list[Chosen]:
    """Log softmax, in fp32, of logits ``[n, V]``: for the token chosen in each row, and so many (``tops``) of the likeliest."""
    logs = logits.float().log_softmax(-1)
    chosen = logs.gather(1, torch.tensor(tokens, device=logs.device)[:, None])[:, 0].tolist()
    values, ids = (likeliest.tolist() for likeliest in logs.topk(min(max(tops), logs.shape[1])))
    return [
        Chosen(token, _told(own), tuple(Logprob(other, _told(log)) for other, log in zip(ids[row][:top], values[row])))
        for row, (token, own, top) in enumerate(zip(tokens, chosen, tops, strict=True))
    ]


def _told(logprob: float) -> float:
    return max(LOWEST, logprob)
