"""Independent pieces of work done at the same time on one GPU."""

from collections.abc import Callable

import torch

_STREAMS: dict[tuple[torch.device, int], list[torch.cuda.Stream]] = {}


def at_once(device: torch.device, *works: Callable[[], object]) -> None:
    """Do these, of which none needs what another makes: on a GPU beside each other, the last on the current stream, which
    afterwards has waited for all. Kernels that fill only part of a GPU, or wait for memory, then share it; in a CUDA graph they
    are branches.

    What they make for others goes into tensors that were there before. PyTorch gives memory back to the stream it was allocated
    on, so what a work allocates must be for itself alone: elsewhere it could be written anew while it is being read, and no
    other stream's tensors could ever take its place.
    """
    if device.type != "cuda":
        for work in works:
            work()
        return
    current, forked = torch.cuda.current_stream(device), []
    try:
        for stream, work in zip(_streams(device, current, len(works) - 1), works):
            stream.wait_stream(current)
            forked.append(stream)
            with torch.cuda.stream(stream):
                work()
        works[-1]()
    finally:
        for stream in forked:  # waiting for one that has not begun would end a capture, and hide the error
            current.wait_stream(stream)


def _streams(device: torch.device, current: torch.cuda.Stream, count: int) -> list[torch.cuda.Stream]:
    """So many beside the current one; the same each time."""
    streams = _STREAMS.setdefault((device, current.cuda_stream), [])
    streams += [torch.cuda.Stream(device) for _ in range(count - len(streams))]
    return streams[:count]
