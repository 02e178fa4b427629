"""A matrix split by columns, and its columns put together again without a copy when they lie side by side."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def split_columns(x: Tensor, widths: Sequence[int]) -> tuple[Tensor, ...]:
    """Column blocks of ``[*, N]``. Autograd's own split fills a zero matrix for every block; here backward joins them."""
    return _Split.apply(x, tuple(widths))


def neighbours(parts: Sequence[Tensor]) -> Tensor | None:
    """The ``[*, sum of widths]`` matrix that the parts are neighbouring columns of, as a view; None if they are not."""
    first = parts[0]
    offset, total = first.storage_offset(), 0
    for part in parts:
        same = part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr() and part.stride() == first.stride()
        if not same or part.storage_offset() != offset + total:
            return None
        total += part.shape[-1]
    if first.stride(-1) != 1 or first.stride(-2) < total:
        return None
    return first.as_strided((*first.shape[:-1], total), first.stride())


def empty_columns(like: Sequence[Tensor]) -> list[Tensor]:
    """For each ``[T, H, D]`` of ``like`` (of any H) an empty one, all of them neighbouring columns of one matrix."""
    widths = [x.shape[1] * x.shape[2] for x in like]
    joined = torch.empty(like[0].shape[0], sum(widths), dtype=like[0].dtype, device=like[0].device)
    return [part.view(x.shape) for part, x in zip(joined.split(widths, dim=1), like)]


def add_products(y: Tensor, parts: Sequence[Tensor], blocks: Iterable[Tensor], beta: int = 1) -> None:
    """``β y + X M`` in place, ``[T, K]``: X ``[T, N]`` as column blocks, M ``[N, K]`` as blocks of rows, each of which meets the
    columns that belong to it."""
    joined = neighbours(parts)
    parts = list(parts) if joined is None else [joined]
    starts = [0, *itertools.accumulate(part.shape[1] for part in parts)]
    first = 0
    for rows in blocks:
        last = first + rows.shape[0]
        for part, start in zip(parts, starts):
            begin, end = max(first, start), min(last, start + part.shape[1])
            if begin < end:
                y.addmm_(part[:, begin - start : end - start], rows[begin - first : end - first], beta=beta)
                beta = 1
        first = last


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, widths: tuple[int, ...]) -> tuple[Tensor, ...]:
        return x.split(list(widths), dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        joined = neighbours(grads)
        return torch.cat(grads, dim=-1) if joined is None else joined, None
