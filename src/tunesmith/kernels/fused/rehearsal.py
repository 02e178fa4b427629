"""Kernels compiled before they are needed: all at once, in threads, while the model is being read from disk.

A kernel is compiled for the types, widths and alignments it is called with. Here each is launched once on a few rows of no
meaning that have a model's widths. One that is called in another way later is compiled then, as it would have been.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import torch
from torch import Tensor

from tunesmith.kernels.columns import split_columns
from tunesmith.kernels.fused import cross_entropy, gated, input_side, nf4, output_side, rms_norm
from tunesmith.kernels.segments import Segments

ROWS = 32
Task = Callable[[], object]


@dataclass(frozen=True)
class Widths:
    """What kernels are compiled for. hidden, inner: of the stream and of the MLP. heads, key_heads, head_dim: of attention.
    vocab. rank: of one linear. groups: linears that share an input, for each kind of input. dropout: whether there is any.
    dtype: of activations. quantised: whether weights are stored in 4 bits."""

    hidden: int
    inner: int
    heads: int
    key_heads: int
    head_dim: int
    vocab: int
    rank: int
    groups: tuple[int, ...]
    dropout: bool
    dtype: torch.dtype
    quantised: bool


@contextmanager
def rehearsal(widths: Widths, segments: Sequence[Segments]) -> Iterator[None]:
    """Within this block the kernels of a step are compiled beside whatever else happens; it ends when all are.

    Args:
        segments: packs like those that will come, on the GPU: the tile of attention depends on them.
    """
    pool = ThreadPoolExecutor(thread_name_prefix="compile")
    device = segments[0].device
    try:
        for task in _tasks(widths, segments, device):
            pool.submit(task)  # an error is for the one who calls the kernel for real
        yield
    finally:
        pool.shutdown()


def _tasks(widths: Widths, segments: Sequence[Segments], device: torch.device) -> Iterator[Task]:
    """The slowest to compile first."""

    def rows(*shape: int, dtype: torch.dtype = widths.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    for each in segments:
        yield partial(_attention, widths, each, rows)
    drawn = (0.5, torch.zeros(1, dtype=torch.int64, device=device), 1) if widths.dropout else ()
    x, dy = rows(ROWS, widths.hidden), rows(ROWS, widths.hidden)
    for members in widths.groups:
        t, A = rows(ROWS, members * widths.rank), rows(members * widths.rank, widths.hidden)
        yield partial(input_side.input_gradients, t, x, A, *drawn)
        yield partial(input_side.project, x, A, 0.5, *drawn)
    B, xA = rows(widths.hidden, widths.rank), rows(ROWS, widths.rank)
    yield partial(output_side.output_gradients, dy, B, xA, 0.5, torch.empty_like(xA), torch.float32)
    yield partial(output_side.expand, xA, B, dy)
    logits, targets = rows(ROWS, widths.vocab), torch.zeros(ROWS, dtype=torch.int64, device=device)
    yield partial(cross_entropy.softmax_gradient, logits, targets, 0.0, 1.0, True)
    weight, rstd = rows(widths.hidden), rows(ROWS, dtype=torch.float32)
    for other in (x, None):  # with the residual stream beside it and without
        yield partial(rms_norm.rms_norm_backward, dy, x, weight, rstd, 0.0, other)
        yield partial(rms_norm.rms_norm_forward, x, weight, 1e-5, 0.0, other)
    gate, up = split_columns(rows(ROWS, 2 * widths.inner), [widths.inner] * 2)
    yield partial(gated.gated_backward, rows(ROWS, widths.inner), gate, up, "silu")
    yield partial(gated.gated_forward, gate, up, "silu")
    if widths.quantised:
        yield partial(_dequantise, widths, device)


def _attention(widths: Widths, segments: Segments, rows: Callable[..., Tensor]) -> None:
    from tunesmith.kernels.attention import rotary_attention

    tokens, size = sum(segments.lengths), widths.head_dim
    columns = [count * size for count in (widths.heads, widths.key_heads, widths.key_heads)]
    joined = rows(tokens, sum(columns)).requires_grad_()
    q, k, v = (x.unflatten(-1, (-1, size)) for x in split_columns(joined, columns))
    cos, sin = rows(tokens, size), rows(tokens, size)
    rotary_attention(q, k, v, cos, sin, segments, scaling=0.5).sum().backward()


def _dequantise(widths: Widths, device: torch.device) -> None:
    """A double-quantised weight of a few blocks, as bitsandbytes describes it."""
    size = 64
    inner = SimpleNamespace(code=torch.zeros(256, device=device), absmax=torch.zeros(16, device=device), blocksize=256)
    state = SimpleNamespace(
        quant_type="nf4", shape=(size, size), blocksize=64, state2=inner, code=torch.zeros(16, device=device),
        absmax=torch.zeros(size, dtype=torch.uint8, device=device), offset=torch.zeros((), device=device),
    )  # fmt: skip
    nf4.dequantise(torch.zeros(size * size // 2, 1, dtype=torch.uint8, device=device), state, widths.dtype)
