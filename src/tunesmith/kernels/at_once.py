"""Independent pieces of work done at the same time on one GPU."""

from collections.abc import Callable
from typing import Any

import torch

_STREAMS: dict[tuple[torch.device, int], list[torch.cuda.Stream]] = {}


def at_once(device: torch.device, *works: Callable[[], Any]) -> list[Any]:
    """What each of these gives, of which none needs what another makes: on a GPU beside each other, the last on the current
    stream, which afterwards has waited for all. Kernels that fill only part of a GPU, or wait for memory, then share it; in a
    CUDA graph they are branches.

    Tensors need no further care: those that a work makes are given back to its own stream's memory, which is used again only
    after that stream has waited for the current one.
    """
    if device.type != "cuda":
        return [work() for work in works]
    current = torch.cuda.current_stream(device)
    streams = _streams(device, current, len(works) - 1)
    made = []
    try:
        for stream, work in zip(streams, works):
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                made.append(work())
        return [*made, works[-1]()]
    finally:
        for stream in streams:
            current.wait_stream(stream)


def _streams(device: torch.device, current: torch.cuda.Stream, count: int) -> list[torch.cuda.Stream]:
    """So many beside the current one, which no other stream has beside it; the same each time."""
    streams = _STREAMS.setdefault((device, current.cuda_stream), [])
    streams += [torch.cuda.Stream(device) for _ in range(count - len(streams))]
    return streams[:count]
