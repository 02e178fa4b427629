"""A step of decoding over buffers that stay where they are; on a GPU one CUDA graph, launched as a whole.

A step has hundreds of kernels, each over in microseconds: launching them one by one takes many times as long as they do.
What changes from step to step lies in two small buffers, the tokens and their positions; the mask is made of the latter
inside the graph. Rows without an answer hold a token at position 0 of a free row, where nobody reads it.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tunesmith.kernels.cached_attention import Step, Store

Forward = Callable[[Tensor, Tensor, Step, int], Tensor]
"""Token ids ``[1, n]``, positions ``[n]``, what attention goes through, and how many logits to keep; gives ``[n, V]``."""


class StaticStep:
    """The step of at most ``rows`` answers over one store.

    eager_reason: why it could not be captured, if so; it then runs kernel by kernel, as it does on a CPU.
    """

    def __init__(self, forward: Forward, store: Store, rows: int) -> None:
        device = store.data.device
        self.forward, self.store, self.rows = forward, store, rows
        self.given = torch.zeros(2, rows, dtype=torch.int64, device=device)
        self.ids, self.positions = self.given[:1], self.given[1]
        self.graph: torch.cuda.CUDAGraph | None = None
        self.eager_reason: str | None = None

    def __call__(self, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Logits ``[n, V]`` after these tokens at these positions; a tensor of the caller's own."""
        self._load(tokens, positions)
        if self.graph is not None:
            self.graph.replay()
            return self.logits[: len(tokens)].clone()
        logits = self._compute()
        if self.ids.is_cuda and self.eager_reason is None:
            self._capture()
        return logits[: len(tokens)]

    def _load(self, tokens: Sequence[int], positions: Sequence[int]) -> None:
        spare = [0] * (self.rows - len(tokens))
        self.given.copy_(torch.tensor([[*tokens, *spare], [*positions, *spare]]))

    def _compute(self) -> Tensor:
        step = Step(self.store, self.positions, self.store.length, ragged=True)
        return self.forward(self.ids, self.positions, step, self.rows)

    def _capture(self) -> None:
        """After an eager step, which compiled what it needs. Computed again and captured, a step writes the same keys to the
        same places."""
        device = self.ids.device
        stream, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            self._compute()  # on this stream, so that libraries have their workspaces
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self.logits = self._compute()
        except RuntimeError as error:
            self.eager_reason = (str(error).splitlines() or ["unknown"])[0]
        else:
            self.graph = graph
        current.wait_stream(stream)
