"""The loss of each row by itself, through the loss the training uses: rows share packs, and prefixes, but not their sums."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tunesmith.data.example import Example
from tunesmith.data.packing import Document, laid, lay_flat
from tunesmith.training.step import PackLoss

ROOM = 2048
"""Tokens in a pack."""


@dataclass(frozen=True)
class RowLoss:
    """total: sum of the cross-entropies of a row's trained tokens, in nats. tokens: how many they are."""

    total: float
    tokens: int

    def __add__(self, other: "RowLoss") -> "RowLoss":
        return RowLoss(self.total + other.total, self.tokens + other.tokens)


@torch.no_grad()
def row_losses(model: Any, loss_of: PackLoss, examples: Sequence[Example], room: int = ROOM) -> list[RowLoss]:
    """The loss of every example, dropout off; 0 of 0 tokens where nothing is trained.

    Args:
        loss_of: of this model. room: tokens in a pack before prefixes are shared; a longer example has one to itself.
    """
    losses = [RowLoss(0.0, 0)] * len(examples)
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    for chosen, places in _packs(examples, room):
        order = [i for group in laid(chosen) for i in group.members]
        pack = lay_flat(chosen, sum(document.tokens for document in chosen)).to(device)
        with loss_of.attention():
            parts = loss_of.parts(pack, [len(chosen[i].targets) for i in order])
        for i, part in zip(order, torch.stack(parts).tolist()):
            losses[places[i]] = RowLoss(part, len(chosen[i].targets))
    model.train(was_training)
    return losses


def _packs(examples: Sequence[Example], room: int) -> Iterator[tuple[list[Document], list[int]]]:
    """Documents for a pack, like lengths together, and which examples they are."""
    made = [(document, i) for i, example in enumerate(examples) if (document := Document.of(example))]
    chosen: list[tuple[Document, int]] = []
    for document, place in sorted(made, key=lambda pair: len(pair[0].ids)):
        if chosen and sum(len(other.ids) for other, _ in chosen) + len(document.ids) > room:
            yield [d for d, _ in chosen], [i for _, i in chosen]
            chosen = []
        chosen.append((document, place))
    if chosen:
        yield [d for d, _ in chosen], [i for _, i in chosen]
