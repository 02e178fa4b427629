"""How the next token is chosen: the likeliest one, or drawn from what temperature, top-k and top-p leave."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from tunesmith.errors import RecipeError, nearest


@dataclass(frozen=True)
class Sampling:
    """max_new_tokens: at most so many. temperature: 0 for greedy. top_p, top_k: nucleus and top-k limits (1 and 0 for none).
    seed: of what is drawn; with the same one a prompt is answered alike, whatever is answered beside it. None draws a seed
    from torch's own generator.

    Raises:
        RecipeError: a value of another kind or out of its range.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Sampling":
        """These settings, by their names. Raises RecipeError for a name that there is not, and as the class itself."""
        names = [one.name for one in fields(cls)]
        for name in settings:
            if name not in names:
                raise RecipeError(f"There is no setting {name!r}{nearest(name, names)}.", f"Set one of {', '.join(names)}.")
        return cls(**settings)

    def nth(self, number: int) -> "Sampling":
        """That of one of several answers to a prompt, numbered from 0: with a seed, each draws otherwise, and always alike. The
        first one keeps the seed; the others' are no neighbours of it, which may be somebody's next seed."""
        if self.seed is None or number == 0:
            return self
        return replace(self, seed=random.Random(f"{self.seed} {number}").getrandbits(63))

    def __post_init__(self) -> None:
        for one in fields(self):
            value, kind = getattr(self, one.name), Real if one.name in ("temperature", "top_p") else Integral
            if (value is not None or one.name != "seed") and (isinstance(value, bool) or not isinstance(value, kind)):
                number = "number" if kind is Real else "whole number"
                raise RecipeError(f"{one.name} is {value!r}, not a {number}.", f"Give another {one.name}.")
        limits = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (0 <= self.temperature < float("inf"), "0 for greedy, or above"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k >= 0, "0 for no limit, or above"),
            "seed": (self.seed is None or 0 <= self.seed < 2**63, "a whole number from 0"),
        }
        for name, (right, allowed) in limits.items():
            if not right:
                raise RecipeError(f"{name} is {getattr(self, name)}; it must be {allowed}.", f"Give another {name}.")


class Draw:
    """How the tokens of one answer are chosen: greedy, or drawn with a generator of its own."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.greedy = sampling.temperature == 0
        if not self.greedy:
            seed = int(torch.randint(2**62, ())) if sampling.seed is None else sampling.seed
            self.generator = torch.Generator().manual_seed(seed)

    def token(self, logits: Tensor) -> int:
        """One drawn from logits ``[V]``, by inverting the distribution function: rounding hardly ever decides."""
        scores, ids = self._limited(logits.double() / self.sampling.temperature)
        reached = scores.softmax(-1).cumsum(-1)
        drawn = torch.rand((), generator=self.generator, dtype=torch.float64).to(reached.device) * reached[-1]
        at = int(torch.searchsorted(reached, drawn, right=True).clamp(max=len(reached) - 1))
        return at if ids is None else int(ids[at])

    def _limited(self, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scores within top-k and top-p, and their ids; None if all of them are, in order."""
        limit, nucleus = self.sampling.top_k or len(scores), self.sampling.top_p
        if limit >= len(scores) and nucleus >= 1:
            return scores, None
        scores, ids = scores.topk(min(limit, len(scores)))  # largest first
        if nucleus < 1:
            before = scores.softmax(-1).cumsum(-1) - scores.softmax(-1)
            kept = max(1, int((before < nucleus).sum()))
            scores, ids = scores[:kept], ids[:kept]
        return scores, ids
