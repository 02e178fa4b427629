"""Proves that attention over a store is attention over whole answers: prompts flat, what they share once, then token by token."""

import pytest
import torch
from torch import Tensor

from tunesmith.kernels.attention import segment_attention_plain
from tunesmith.kernels.cached_attention import Prompts, Step, Store, StoreShape
from tunesmith.kernels.segments import Segments

HEADS, KEY_HEADS, SIZE, SHARED = 4, 2, 8, 3
LENGTHS = (4, 9, 6)
"""Of the prompts, what they share in them."""


def answers(steps: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Queries, keys and values ``[T, H, D]`` of whole answers that begin with the same tokens."""
    torch.manual_seed(0)
    begin = [torch.randn(SHARED, heads, SIZE, dtype=torch.float64) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    return [
        tuple(torch.cat([part, torch.randn(length - SHARED + steps, *part.shape[1:], dtype=torch.float64)]) for part in begin)  # type: ignore[misc]
        for length in LENGTHS
    ]


@pytest.mark.parametrize("how", [{}, {"sliding_window": 4}, {"softcap": 2.0}, {"sliding_window": 4, "softcap": 2.0}], ids=str)
@pytest.mark.parametrize("shared", [True, False])
def test_a_store_gives_what_whole_answers_give(how: dict[str, float], shared: bool) -> None:
    steps, given = 5, {"scaling": 0.3, **how}
    whole = answers(steps)
    expected = [segment_attention_plain(*parts, Segments.of([len(parts[0])]), **given) for parts in whole]  # type: ignore[arg-type]
    store = Store(StoreShape(1, KEY_HEADS, SIZE), 4, 16, torch.float64, torch.device("cpu"))
    start = SHARED if shared else 0
    lengths = [SHARED] * shared + [length - start for length in LENGTHS]
    prompts = Prompts(store, Segments.of(lengths, [-1] * shared + [0 if shared else -1] * 3), range(3), shared)
    flat = [torch.cat([whole[0][k][:start], *(p[k][start:n] for p, n in zip(whole, LENGTHS))]) for k in range(3)]
    out = prompts.attention(0, *flat, **given).split(lengths)[shared:]
    for got, want, length in zip(out, expected, LENGTHS):
        torch.testing.assert_close(got, want[start:length])
    for step in range(steps):
        at = torch.tensor([length + step for length in LENGTHS])
        one = [torch.stack([parts[k][int(place)] for parts, place in zip(whole, at)]) for k in range(3)]
        out = Step(store, at, int(at.max()) + 1, ragged=True).attention(0, *one, **given)
        torch.testing.assert_close(out, torch.stack([want[int(place)] for want, place in zip(expected, at)]))


def test_a_row_moves_and_a_store_grows_with_what_is_in_it() -> None:
    store = Store(StoreShape(2, 1, 4), 2, 8, torch.float32, torch.device("cpu"))
    keys, values = torch.randn(5, 1, 4), torch.randn(5, 1, 4)
    store.put(1, 1, 0, keys, values)
    store.move(1, 0, 5)
    grown = store.grown(3, 16)
    assert (grown.rows, grown.length) == (3, 16)
    for row in (0, 1):
        assert torch.equal(grown.data[0, 1, row, :5], keys)
        assert torch.equal(grown.data[1, 1, row, :5], values)
    assert not grown.data[:, 0].any()
