"""Kernels compiled before they are needed: all at once, in threads, while the model is being read from disk.

A kernel is compiled for the types, widths and alignments it is called with. Here each is called once, not launched, on a few
rows of no meaning that have a model's widths. One that is called in another way later is compiled then, as it would have been.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import torch
from torch import Tensor

from tunesmith.kernels.attention import rotary_attention
from tunesmith.kernels.columns import empty_columns, split_columns
from tunesmith.kernels.factors import room
from tunesmith.kernels.fused import attention_backward, cross_entropy, gated, input_side, nf4, output_side, rms_norm, rope
from tunesmith.kernels.fused.kernel import compile_only
from tunesmith.kernels.fused.scatter import Scatter
from tunesmith.kernels.fused_attention import rotates_inside
from tunesmith.kernels.segments import Segments

ROWS = 32
COMPILING = 4
"""Threads that compile. More wait for the interpreter rather than work: on 16 cores, 26 kernels took 8.2 s with one, 2.6 s with
four, 2.9 s with eight and 4.3 s with twenty."""
SHORT_TURN = 5e-4
"""Seconds that one of many compiling threads may keep the interpreter while another waits for it, the one that reads the model
above all: with Python's own 5 ms each of its waits would take a tenth of a second."""
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
def rehearsal(widths: Widths, segments: Segments, probe: Segments) -> Iterator[None]:
    """Within this block the kernels of a step are compiled beside whatever else happens. It ends when those of a forward pass
    are there; those of training go on being compiled in the background.

    Args:
        segments: a pack like those that will come, probe: like those that probes use, on the GPU: the tile of attention
            depends on them.
    """
    pool, turn = ThreadPoolExecutor(COMPILING, thread_name_prefix="compile"), sys.getswitchinterval()
    sys.setswitchinterval(min(turn, SHORT_TURN))
    tasks = [pool.submit(_triton_key)]
    try:
        # An error is for the one who calls the kernel for real.
        soon = [pool.submit(_rehearse, tasks[0], task) for task in _forward_tasks(widths, segments, probe)]
        tasks += soon
        tasks += [pool.submit(_rehearse, tasks[0], task) for task in _training_tasks(widths, segments)]
        yield
        wait(soon)
    finally:
        if turn > SHORT_TURN:
            pool.submit(_restore_turns, tasks, turn)
        pool.shutdown(wait=False)


def _triton_key() -> None:
    """Triton's digest of itself, half a second's work that every thread would do at once if none had done it."""
    with suppress(ImportError):
        from triton.runtime.cache import triton_key

        triton_key()


def _rehearse(key: Future[None], task: Task) -> None:
    wait([key])
    with compile_only():
        task()


def _restore_turns(tasks: Sequence[Future[None]], seconds: float) -> None:
    """As long turns as before, once these are done."""
    wait(tasks)
    sys.setswitchinterval(seconds)


def _forward_tasks(widths: Widths, segments: Segments, probe: Segments) -> Iterator[Task]:
    """Kernels of the passes that compare our path with the model's own, the slowest to compile first."""
    rows = partial(_rows, widths, segments.device)
    for each in (segments, probe):
        yield partial(_attention_forward, widths, each)
    x = rows(ROWS, widths.hidden)
    for members in widths.groups:
        yield partial(input_side.project, x, rows(members * widths.rank, widths.hidden), 0.5, seed=_seed(segments.device))
    logits, targets = rows(ROWS, widths.vocab), torch.zeros(ROWS, dtype=torch.int64, device=segments.device)
    yield partial(cross_entropy.softmax_gradient, logits, targets, 0.0, 1.0, False)
    for other in (x, None):  # with the residual stream beside it and without
        yield partial(rms_norm.rms_norm_forward, x, rows(widths.hidden), 1e-5, 0.0, other)
    gate, up = split_columns(rows(ROWS, 2 * widths.inner), [widths.inner] * 2)
    yield partial(gated.gated_forward, gate, up, "silu")
    if widths.quantised:
        yield partial(_dequantise, widths, segments.device)


def _training_tasks(widths: Widths, segments: Segments) -> Iterator[Task]:
    """Kernels that only training calls, the slowest to compile first."""
    rows = partial(_rows, widths, segments.device)
    for backward in (attention_backward.queries_backward, attention_backward.keys_backward):
        yield partial(_attention_backward, widths, segments, backward)
    p, seed = 0.5 if widths.dropout else 0.0, _seed(segments.device)
    x, dy = rows(ROWS, widths.hidden), rows(ROWS, widths.hidden)
    for members in widths.groups:
        ranks = members * widths.rank
        A, wide = rows(ranks, widths.hidden), rows(ROWS, widths.hidden + room(ranks))
        dx, t = wide[:, : widths.hidden], wide[:, widths.hidden :][:, :ranks]
        yield partial(input_side.input_gradient, t, x, A.float(), 0.5, p, seed)
        yield partial(input_side.spread, t, A, dx, 0.5, p, seed)
        B = torch.zeros(widths.hidden, widths.rank, device=segments.device)
        yield partial(output_side.output_gradient, dy, rows(ROWS, ranks)[:, : widths.rank], B)
        if widths.dropout:
            yield partial(input_side.project, x, A, 0.5, p, seed)
    home = rows(ROWS, widths.hidden + room(widths.rank))[:, widths.hidden :][:, : widths.rank]
    yield partial(Scatter([0], [home]), torch.zeros(ROWS * widths.rank, device=segments.device))
    logits, targets = rows(ROWS, widths.vocab), torch.zeros(ROWS, dtype=torch.int64, device=segments.device)
    yield partial(cross_entropy.softmax_gradient, logits, targets, 0.0, 1.0, True)
    rstd = torch.zeros(ROWS, device=segments.device)
    for other in (x, None):
        yield partial(rms_norm.rms_norm_backward, dy, x, rows(widths.hidden), rstd, 0.0, other)
    gate, up = split_columns(rows(ROWS, 2 * widths.inner), [widths.inner] * 2)
    yield partial(gated.gated_backward, rows(ROWS, widths.inner), gate, up, "silu")


def _seed(device: torch.device) -> Tensor:
    """As layers hand it over, even to a pass without dropout: its type counts also where it is not read."""
    return torch.zeros(1, dtype=torch.int64, device=device)


def _rows(widths: Widths, device: torch.device, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=widths.dtype, device=device)


@torch.no_grad()
def _attention_forward(widths: Widths, segments: Segments) -> None:
    q, k, v, cos, sin = _heads(widths, segments)
    rotary_attention(q, k, v, cos, sin, segments, scaling=0.5)


@torch.no_grad()
def _attention_backward(widths: Widths, segments: Segments, backward: Callable[..., object]) -> None:
    q, k, v, *tables = _heads(widths, segments)
    cos, sin = tables if rotates_inside(q, tables[0], segments) else (None, None)
    dq, dk, dv = empty_columns((q, k, v))
    lse = torch.zeros(q.shape[1], q.shape[0], device=q.device)
    layout = segments.layout(widths.head_dim, widths.dtype)
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    width = q.shape[1] * q.shape[2]
    dout = _rows(widths, segments.device, q.shape[0], width + room(widths.rank))[:, :width].view(q.shape)  # of o_proj's input
    work = attention_backward.Work(dout, q, k, v, out, lse, torch.zeros_like(lse), layout, 0.5, None, None, dq, dk, dv, cos, sin)
    backward(work)
    if cos is None:  # `rope.rotary` rotates them back
        for x in (q, k):
            rope.rotate(x, tables[0], tables[1], x, backward=True)


def _heads(widths: Widths, segments: Segments) -> tuple[Tensor, ...]:
    """q, k and v as columns of one matrix, and tables of the rotation."""
    tokens, size = sum(segments.lengths), widths.head_dim
    columns = [count * size for count in (widths.heads, widths.key_heads, widths.key_heads)]
    q, k, v = _rows(widths, segments.device, tokens, sum(columns)).split(columns, dim=1)
    tables = _rows(widths, segments.device, 2, tokens, size)
    return *(x.unflatten(-1, (-1, size)) for x in (q, k, v)), *tables


def _dequantise(widths: Widths, device: torch.device) -> None:
    """A double-quantised weight of a few blocks, as bitsandbytes describes it."""
    size = 64
    inner = SimpleNamespace(code=torch.zeros(256, device=device), absmax=torch.zeros(16, device=device), blocksize=256)
    state = SimpleNamespace(
        quant_type="nf4", shape=(size, size), blocksize=64, state2=inner, code=torch.zeros(16, device=device),
        absmax=torch.zeros(size, dtype=torch.uint8, device=device), offset=torch.zeros((), device=device),
    )  # fmt: skip
    nf4.dequantise(torch.zeros(size * size // 2, 1, dtype=torch.uint8, device=device), state, widths.dtype)
