"""Attention of growing answers: keys and values of what came before lie in one static store.

The store is one tensor, a row for each answer, and living answers always have the first rows: a step reads views of it, and
nothing is gathered or concatenated. Prompts come flat as ``[T]`` tokens without padding, what they begin with in common
only once (see `segments`); then every answer brings one token a step.

Legend: T tokens of one call, n answers, H heads, D head size, L tokens a row has room for.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.kernels.attention import segment_attention
from tunesmith.kernels.segments import Segments


@dataclass(frozen=True)
class StoreShape:
    """layers: of attention. key_heads: H_kv. head_dim: D of keys and of values."""

    layers: int
    key_heads: int
    head_dim: int


class Store:
    """Keys (already rotated) and values, ``[2, layers, rows, L, H_kv, D]``."""

    def __init__(self, shape: StoreShape, rows: int, length: int, dtype: torch.dtype, device: torch.device) -> None:
        self.shape = shape
        # Zeros, since what no token has written yet is masked, but read all the same.
        self.data = torch.zeros(2, shape.layers, rows, length, shape.key_heads, shape.head_dim, dtype=dtype, device=device)

    @property
    def rows(self) -> int:
        return self.data.shape[2]

    @property
    def length(self) -> int:
        return self.data.shape[3]

    def grown(self, rows: int, length: int) -> "Store":
        """A store with at least as much room and the same contents."""
        new = Store(self.shape, max(rows, self.rows), max(length, self.length), self.data.dtype, self.data.device)
        new.data[:, :, : self.rows, : self.length] = self.data
        return new

    def move(self, source: int, target: int, length: int) -> None:
        """Let one row take another's place."""
        self.data[:, :, target, :length] = self.data[:, :, source, :length]

    def put(self, layer: int, row: int, start: int, keys: Tensor, values: Tensor) -> None:
        """Keys and values ``[t, H_kv, D]`` of t tokens from position ``start`` on."""
        self.data[0, layer, row, start : start + keys.shape[0]] = keys
        self.data[1, layer, row, start : start + keys.shape[0]] = values


class Cached(ABC):
    """Stands in the place of `Segments` where attention goes through a store."""

    @abstractmethod
    def attention(self, layer: int, query: Tensor, key: Tensor, value: Tensor, **how: Any) -> Tensor:
        """Store this layer's keys and values, rotated already, and attend: all ``[T, H, D]``; how: as `segment_attention`."""


@dataclass(frozen=True)
class Prompts(Cached):
    """The prompts of new answers. segments: the tokens they have in common, if any, then one for each prompt. rows: of each
    prompt, in order. shared: whether the first segment is common to all."""

    store: Store
    segments: Segments
    rows: Sequence[int]
    shared: bool

    def attention(self, layer: int, query: Tensor, key: Tensor, value: Tensor, **how: Any) -> Tensor:
        lengths = self.segments.lengths
        keys, values = key.split(lengths), value.split(lengths)
        start = lengths[0] if self.shared else 0
        for number, row in enumerate(self.rows):
            if self.shared:
                self.store.put(layer, row, 0, keys[0], values[0])
            self.store.put(layer, row, start, keys[number + self.shared], values[number + self.shared])
        return segment_attention(query, key, value, self.segments, **how)


class Step(Cached):
    """One token of each answer. positions: where it stands, int64 ``[n]``, on the store's device. longest: tokens that rows
    are read up to. ragged: whether answers may differ in length."""

    def __init__(self, store: Store, positions: Tensor, longest: int, ragged: bool) -> None:
        self.store, self.positions, self.longest, self.ragged = store, positions, longest, ragged
        self.index = torch.arange(len(positions), device=positions.device)
        self._masks: dict[int | None, Tensor | None] = {}

    def attention(self, layer: int, query: Tensor, key: Tensor, value: Tensor, **how: Any) -> Tensor:
        keys, values = self.store.data[0, layer], self.store.data[1, layer]
        keys[self.index, self.positions] = key
        values[self.index, self.positions] = value
        count, read = len(self.index), self.longest
        # [n, H_kv, queries of one key head, D]: heads that share a key stand where tokens of a sequence would.
        grouped = query.unflatten(1, (key.shape[1], -1))
        out = attend_one(
            grouped,
            keys[:count, :read].transpose(1, 2),
            values[:count, :read].transpose(1, 2),
            self._mask(how.get("sliding_window")),
            how["scaling"],
            how.get("softcap"),
        )
        return out.flatten(1, 2)

    def _mask(self, window: int | None) -> Tensor | None:
        """What each answer sees, bool ``[n, 1, 1, L]``, made once for all layers; None for everything."""
        if window is not None and window >= self.longest:
            window = None
        if window is None and not self.ragged:
            return None
        if window not in self._masks:
            place, last = torch.arange(self.longest, device=self.positions.device), self.positions[:, None]
            seen = place <= last
            if window is not None:
                seen &= place > last - window
            self._masks[window] = seen[:, None, None, :]
        return self._masks[window]


def attend_one(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, softcap: float | None) -> Tensor:
    """``[n, H_kv, G, D]`` from q of that shape and k, v ``[n, H_kv, L, D]``; each query may see all that the mask allows."""
    if not softcap:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)
    scores = softcap * torch.tanh(q @ k.transpose(2, 3) * (scaling / softcap))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    wide = torch.promote_types(q.dtype, torch.float32)
    return scores.softmax(-1, dtype=wide).to(q.dtype) @ v
