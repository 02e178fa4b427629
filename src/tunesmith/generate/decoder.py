"""Answers that grow together, a token a step, and may come and go at any time."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunesmith.generate.cached import CachedRows
from tunesmith.generate.fit import store_shape
from tunesmith.generate.logprobs import Chosen, chosen_logprobs
from tunesmith.generate.plain import PlainRows
from tunesmith.generate.pool import keep_rows, take_rows
from tunesmith.generate.sampling import Draw, Sampling


@dataclass
class _Answer:
    """An answer's prompt, how its tokens are chosen, how many of the likeliest are told beside each (None for no logprobs), the
    last one, and how many there are."""

    prompt: list[int]
    draw: Draw
    top: int | None
    last: int = -1
    count: int = 0


class Decoder:
    """Decodes several answers of one model, side by side.

    Args:
        model: a causal language model in eval mode, with an adapter or without. The adapter is read when the first of some
            answers begins, and stays as it was then for those beside it.
        stop_ids: tokens that end an answer. pad_id: a token to fill gaps with; what it is changes nothing.
        slots: answers decoded at a time. More may be added: they wait for a free slot, in order.
        context: tokens the model can see: an answer that reaches them with its prompt ends. None for no end.
        base: decode without the adapter. plain: use the model's own cache, one answer after the other, as is done with models
            that the static store does not fit; ``plain_reason`` then says why.

    Attributes:
        logprobs: of the tokens of the last step, by key, for answers that ask for them.

    One thread may use a model at a time.
    """

    backend: CachedRows | PlainRows | None = None

    def __init__(
        self, model: Any, stop_ids: Sequence[int], pad_id: int, slots: int = 8, *, context: int | None = None, base: bool = False,
        plain: bool = False,
    ) -> None:  # fmt: skip
        self.model, self.base = model, base
        self.context = math.inf if context is None else context
        self.stop_ids, self.slots = frozenset(stop_ids), slots
        self.shape = "asked for" if plain else store_shape(model)
        self.plain_reason = self.shape if isinstance(self.shape, str) else None
        self.answers: dict[int, _Answer] = {}
        self.rows: list[int] = []  # keys of the answers that have one, in the backend's order
        self.waiting: deque[int] = deque()
        self.added = 0
        self.logprobs: dict[int, Chosen] = {}

    @property
    def living(self) -> tuple[int, ...]:
        """Keys of the answers that are not finished, those that wait for a slot too, in order of coming."""
        return tuple(self.answers)

    def add(self, prompt_ids: Sequence[int], sampling: Sampling = Sampling(), top_logprobs: int | None = None) -> int:
        """Begin an answer; it gets its first token at the next step, or when a slot is free.

        Args:
            top_logprobs: find the logprobs of its tokens, and of so many of the likeliest in the place of each; None for neither.

        Returns:
            The key of the answer, never used again.

        Raises:
            ValueError: the prompt is empty.
        """
        if not len(prompt_ids):
            raise ValueError("a prompt needs at least one token")
        key, self.added = self.added, self.added + 1
        self.answers[key] = _Answer(list(prompt_ids), Draw(sampling), top_logprobs)
        self.waiting.append(key)
        return key

    def drop(self, key: int) -> None:
        """End an answer now; nothing happens if it has ended."""
        if self.answers.pop(key, None) is None:
            return
        if key in self.waiting:
            self.waiting.remove(key)
        else:
            assert self.backend is not None
            row = self.rows.index(key)
            self.backend.leave(row)
            self.rows[row] = self.rows[-1]
            self.rows.pop()
        if not self.answers:
            self._rest()

    def answer(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[list[int]]:
        """The whole answers to these prompts; nothing else may be living. Raises ValueError as `add`."""
        answers: dict[int, list[int]] = {self.add(prompt, sampling): [] for prompt in prompts}
        while self.living:
            for key, token in self.step().items():
                answers[key].append(token)
        return list(answers.values())

    @torch.no_grad()
    def step(self) -> dict[int, int]:
        """One more token for every answer that has a slot, by key. A stop token is handed out as an answer's last token."""
        self.logprobs = {}
        if not self.answers:
            return {}
        backend, tokens = self._backend(), {}
        if self.rows:
            tokens = self._choose(self.rows, backend.step([self.answers[key].last for key in self.rows]))
        begun = [self.waiting.popleft() for _ in range(min(len(self.waiting), self.slots - len(self.rows)))]
        if begun:
            self.rows += begun
            tokens |= self._choose(begun, backend.begin([self.answers[key].prompt for key in begun]))
        for key, token in tokens.items():
            answer = self.answers[key]
            most = min(answer.draw.sampling.max_new_tokens, self.context - len(answer.prompt))
            if token in self.stop_ids or answer.count >= most:
                self.drop(key)
        return tokens

    def _backend(self) -> CachedRows | PlainRows:
        if self.backend is not None:
            return self.backend
        shape = self.shape
        if isinstance(shape, str):
            self.backend = PlainRows(self.model, self.base)
        else:
            self.backend = take_rows(self.model, shape, self.slots, self.base)
        return self.backend

    def _rest(self) -> None:
        """Nothing is left to decode: let others have the rows."""
        if isinstance(self.backend, CachedRows):
            keep_rows(self.model, self.backend)
        self.backend = None

    def _choose(self, keys: Sequence[int], logits: Tensor) -> dict[int, int]:
        """The next token of each of these answers, from logits ``[n, V]``."""
        likeliest = logits.argmax(-1).tolist()
        chosen = {}
        for key, first, row in zip(keys, likeliest, logits):
            answer = self.answers[key]
            answer.last = chosen[key] = first if answer.draw.greedy else answer.draw.token(row)
            answer.count += 1
        self._note_logprobs(keys, logits)
        return chosen

    def _note_logprobs(self, keys: Sequence[int], logits: Tensor) -> None:
        """From the logits that are there anyway: no step, captured or not, computes anything more for it."""
        tops = {row: top for row, key in enumerate(keys) if (top := self.answers[key].top) is not None}
        if tops:
            asked = [keys[row] for row in tops]
            tokens = [self.answers[key].last for key in asked]
            self.logprobs |= zip(asked, chosen_logprobs(logits[list(tops)], tokens, list(tops.values())))
