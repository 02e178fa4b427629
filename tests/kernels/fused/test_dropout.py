"""Proves that the mask is Philox's, is the same wherever it is drawn, and follows seed, salt and p as it should."""

import math

import pytest
import torch

dropout = pytest.importorskip("tunesmith.kernels.fused.dropout", reason="needs triton")

SEEDS = [0, 1, 2**40 + 3, -5]


def _seed(value: int, device: str) -> torch.Tensor:
    return torch.tensor([value], device=device)


def _mask(rows, columns, p, seed, salt, device):
    return dropout.drop(torch.ones(rows, columns, device=device), p, _seed(seed, device), salt).bool().cpu()


def test_plain_words_are_those_the_authors_of_philox_publish():
    """Known answer of philox2x32-7 for counter and key zero (Random123, kat_vectors)."""
    assert dropout.words_plain(2, seed=0, salt=0).tolist() == [0x257A3673, 0xCD26BE2A]


def test_every_element_is_judged_by_a_byte_of_its_own_first():
    words = dropout.words_plain(4, seed=7, salt=5)
    own = [int(word) >> 8 * byte & 0xFF for word in words for byte in range(4)]
    assert [int(draw) >> 24 for draw in dropout.draws_plain(16, seed=7, salt=5)] == own


@pytest.mark.parametrize("p", [2**-10, 0.05, 0.3, 1 - 2**-10])
def test_a_chance_that_bytes_cannot_express_is_met(p):
    draws = dropout.draws_plain(2_000_000, seed=3, salt=1)
    for byte in range(4):  # the lowest byte of a word is as good as the highest
        mine = draws[byte::4]
        dropped = int((mine < round(p * 2**32)).sum())
        assert abs(dropped - len(mine) * p) < 4.5 * math.sqrt(len(mine) * p * (1 - p))


@pytest.mark.parametrize("p", [0.0, 0.05, 0.5, 0.999])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("salt", [0, 1, 2**31 - 1])
def test_mask_equals_the_plain_twin(device, p, seed, salt):
    assert torch.equal(_mask(5, 104, p, seed, salt, device).flatten(), dropout.keep_mask_plain(520, p, seed, salt))


@pytest.mark.parametrize("columns", [1, 3, 101, 1030])
def test_every_row_starts_a_new_group(device, columns):
    mask = _mask(7, columns, 0.4, 9, 2, device)
    assert torch.equal(mask, dropout.keep_plain(7, columns, 0.4, 9, 2))
    assert torch.equal(mask[0], dropout.keep_mask_plain(columns, 0.4, 9, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7, 100), (1, 5), (6, 1030), (0, 8)])
def test_kept_values_are_unscaled(device, shape, dtype):
    rows, columns = shape
    wide = torch.randn(rows, columns + 16, device=device).to(dtype)
    x = wide[:, 8 : 8 + columns]
    keep = dropout.keep_plain(rows, columns, 0.3, 11, 4).to(device)
    assert torch.equal(dropout.drop(x, 0.3, _seed(11, device), 4), x * keep)


def test_infinite_values_that_are_dropped_are_zero(device):
    x = torch.full((4, 64), torch.inf, device=device)
    assert not dropout.drop(x, 0.5, _seed(1, device), 0).isnan().any()


@pytest.mark.parametrize("p", [0.01, 0.05, 0.5, 0.9])
def test_share_and_independence_of_neighbours_are_binomial(p):
    dropped = ~dropout.keep_mask_plain(40_000, p, 77, 3)
    pairs = (dropped[:-1:2] & dropped[1::2]).sum()
    for successes, trials, chance in ((dropped.sum(), 40_000, p), (pairs, 20_000, p * p)):
        assert abs(successes - trials * chance) < 4.5 * math.sqrt(trials * chance * (1 - chance))


def test_mask_follows_the_value_in_the_seed_tensor_and_the_salt(device):
    x = torch.ones(16, 64, device=device)
    seed = _seed(3, device)
    first = dropout.drop(x, 0.5, seed, 0)
    assert torch.equal(dropout.drop(x, 0.5, seed, 0), first)
    other_salt = dropout.drop(x, 0.5, seed, 1)
    seed += 1  # in place, as a graph replayed with the next seed sees it
    other_seed = dropout.drop(x, 0.5, seed, 0)
    for other in (other_salt, other_seed):
        assert 0.3 < (other != first).float().mean() < 0.7  # half of all elements differ when the two are independent


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_replayed_graph_draws_anew_when_the_seed_moves():
    x, seed = torch.ones(64, 256, device="cuda"), torch.tensor([5], device="cuda")
    dropout.drop(x, 0.5, seed, 7)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = dropout.drop(x, 0.5, seed, 7)
        seed += 1
    for value in (5, 6, 7):
        graph.replay()
        assert torch.equal(out.bool().cpu(), dropout.keep_plain(64, 256, 0.5, value, 7))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_neither_salt_nor_p_nor_the_number_of_rows_compiles_anew():
    seed = torch.tensor([5], device="cuda")
    dropout.drop(torch.ones(64, 256, device="cuda"), 0.5, seed, 7)
    compiled = len(dropout._drop.function.device_caches[torch.cuda.current_device()][0])
    for rows, p, salt in ((1, 0.05, 0), (17, 0.9, 1), (32, 0.0, 16), (5, 1 / 2**16, 2**31 - 1)):
        dropout.drop(torch.ones(rows, 256, device="cuda"), p, seed, salt)
    assert len(dropout._drop.function.device_caches[torch.cuda.current_device()][0]) == compiled
