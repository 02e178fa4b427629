"""The learning rate over a run."""

import math


def learning_rate(step: int, total: int, peak: float, kind: str, warmup: int = 0) -> float:
    """The rate of update ``step`` (0-based) of ``total``; the same values as transformers' schedulers.

    Rises linearly from 0 over ``warmup`` updates, then falls to 0 by a line (``linear``) or half a cosine (``cosine``),
    or stays (``constant``, which ignores warm-up, and ``constant_with_warmup``).
    """
    if kind == "constant":
        return peak
    if step < warmup:
        return peak * step / max(1, warmup)
    if kind == "constant_with_warmup":
        return peak
    progress = (step - warmup) / max(1, total - warmup)
    if kind == "cosine":
        return peak * max(0.0, 0.5 * (1 + math.cos(math.pi * progress)))
    return peak * max(0.0, 1 - progress)


def default_learning_rate(hidden_size: int) -> float:
    """5e-4 (2000 / hidden_size)^0.78, to two digits: wider models want smaller steps, whatever the rank.

    The exponent is the fit over Llama models in Schulman and Thinking Machines Lab, "LoRA Without Regret" (2025).
    """
    return float(f"{5e-4 * (2000 / hidden_size) ** 0.78:.1e}")
