"""Decoding over a static store: all living answers in one forward pass, through transformers' own model code.

The model runs on flat ``[1, T]`` tokens with our attention behind transformers' attention interface, so that prompts of
different lengths need no padding. Living answers have rows 0 … n-1 of the store; the last one takes the place of one that
leaves. Where a family computes something else on that way, the reason is found on a probe and the plain way taken.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from tunesmith.base.adapter import without_adapter
from tunesmith.base.attention import segments_attention
from tunesmith.base.fixed import all_fixed, fix_linears, use_fixed
from tunesmith.generate.static_step import StaticStep
from tunesmith.kernels.cached_attention import Cached, Prompts, Step, Store, StoreShape
from tunesmith.kernels.segments import Segments, segment_positions

LENGTH_STEP = 64
"""Tokens by which rows grow; static ones at least double, since every growth is captured anew."""
TOGETHER = 4096
"""Prompt tokens computed in one pass."""
SHARED = 4
"""Tokens that prompts must have in common for it to be worth a segment of their own."""
EMPTY_ROWS = 16
"""A captured step may have so many rows, or four for each answer: a step hardly costs more for them, and another capture does."""


class CachedRows:
    """Rows of growing answers of one model, with its adapter or without.

    static: make steps over fixed buffers and the whole store, which a GPU can capture; else over what is written. ``model`` is
    held weakly, so that rows kept for later do not keep it.
    """

    def __init__(self, model: Any, shape: StoreShape, slots: int, base: bool, static: bool | None = None) -> None:
        self.base, self.slots = base, slots
        self._model = ref(model)
        weight = without_adapter(model).get_input_embeddings().weight
        self.device = weight.device
        self.static = self.device.type == "cuda" and not _is_streamed(model) if static is None else static
        self.fixed = fix_linears(model, not base)
        self.all_fixed = all_fixed(model)
        self.store = Store(shape, 0, 0, weight.dtype, self.device)
        self.lengths: list[int] = []
        self.steps: list[StaticStep] = []

    def begin(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """New rows for these prompts; logits ``[n, V]`` after each."""
        logits = [self._prefill(part) for part in _parts(prompts)]
        return torch.cat(logits) if len(logits) > 1 else logits[0]

    def step(self, tokens: Sequence[int]) -> Tensor:
        """One more token for each row; logits ``[n, V]`` after it."""
        count, longest = len(self.lengths), max(self.lengths) + 1
        self._reserve(count, longest)
        if self.static:
            logits = self._static_step(count)(tokens, self.lengths)
        else:
            ragged = min(self.lengths) + 1 != longest
            positions = torch.tensor(self.lengths, device=self.device)
            step = Step(self.store, positions, longest, ragged)
            logits = self._forward(torch.tensor([tokens], device=self.device), positions, step, count)
        self.lengths = [length + 1 for length in self.lengths]
        return logits

    def leave(self, row: int) -> None:
        """End a row; the last one takes its place."""
        last = len(self.lengths) - 1
        if row != last:
            self.store.move(last, row, self.lengths[last])
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()

    def _prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))  # like lengths side by side
        first, count = len(self.lengths), len(prompts)
        self._reserve(first + count, max(map(len, prompts)))
        shared = _shared(prompts)
        lengths = ([shared] if shared else []) + [len(prompts[number]) - shared for number in order]
        parents = ([-1] if shared else []) + [0 if shared else -1] * count
        segments = Segments.of(lengths, parents, self.device)
        ids = list(prompts[0][:shared]) + [token for number in order for token in prompts[number][shared:]]
        positions = segment_positions(segments).to(self.device)
        ends = torch.tensor(lengths).cumsum(0)[bool(shared) :] - 1
        rows = Prompts(self.store, segments, [first + number for number in order], bool(shared))
        logits = self._forward(torch.tensor([ids], device=self.device), positions, rows, ends.to(self.device))
        self.lengths += [len(prompt) for prompt in prompts]
        return logits[torch.tensor(order).argsort().to(self.device)]

    def _forward(self, ids: Tensor, positions: Tensor, cached: Cached, keep: Tensor | int) -> Tensor:
        """Logits ``[n, V]`` of the tokens to keep."""
        model: Any = self._model()
        with ExitStack() as stack:
            stack.enter_context(segments_attention(without_adapter(model)))
            stack.enter_context(use_fixed(self.fixed))
            if self.base and not self.all_fixed:
                stack.enter_context(model.disable_adapter())
            output = without_adapter(model)(
                input_ids=ids, position_ids=positions.unsqueeze(0), segments=cached, use_cache=False, logits_to_keep=keep
            )
        logits: Tensor = output.logits[0]
        return logits

    def _static_step(self, count: int) -> StaticStep:
        most = max(EMPTY_ROWS, 4 * count)
        found = [step for step in self.steps if count <= step.rows <= most]
        if found:
            return min(found, key=lambda step: step.rows)
        self.steps.append(StaticStep(self._forward, self.store, _power(count)))
        return self.steps[-1]

    def _reserve(self, rows: int, length: int) -> None:
        if rows <= self.store.rows and length <= self.store.length:
            return
        length = -(-length // LENGTH_STEP) * LENGTH_STEP
        if self.static:
            rows, length = _power(rows), max(_power(length), 2 * LENGTH_STEP)
        else:
            rows = max(rows, min(self.slots, 2 * self.store.rows))
        self.steps.clear()
        self.store = self.store.grown(rows, length)


def rows_that_fit(model: Any, shape: StoreShape, length: int) -> int:
    """Rows of so many tokens that half of a GPU's free memory has room for, at least one; a thousand on a CPU."""
    weight = without_adapter(model).get_input_embeddings().weight
    if weight.device.type != "cuda":
        return 1000
    row = 2 * shape.layers * _power(length) * shape.key_heads * shape.head_dim * weight.dtype.itemsize
    fit = torch.cuda.mem_get_info(weight.device)[0] // 2 // row
    return 1 << (fit.bit_length() - 1) if fit else 1


def _is_streamed(model: Any) -> bool:
    """Whether layers come from host memory as they are called."""
    return any(hasattr(module, "announce") for module in model.modules())


def _power(count: int) -> int:
    """The next power of two."""
    return 1 << (count - 1).bit_length()


def _shared(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all of several prompts begin with, each going on from there."""
    if len(prompts) < 2:
        return 0
    # In alphabetical order: those between the first and the last have what these two have in common.
    first, last = min(map(list, prompts)), max(map(list, prompts))
    most = min(map(len, prompts)) - 1
    common = next((at for at in range(most) if first[at] != last[at]), most)
    return common if common >= SHARED else 0


def _parts(prompts: Sequence[Sequence[int]]) -> list[list[Sequence[int]]]:
    """Prompts in parts of at most so many tokens, or one prompt."""
    parts: list[list[Sequence[int]]] = []
    tokens = TOGETHER
    for prompt in prompts:
        if tokens + len(prompt) > TOGETHER:
            parts.append([])
            tokens = 0
        parts[-1].append(prompt)
        tokens += len(prompt)
    return parts
