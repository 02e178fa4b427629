"""Proves that the adapter's thin products drop exactly what `dropout` drops, for odd sizes, strides and split sums."""

import pytest
import torch

adapter = pytest.importorskip("tunesmith.kernels.fused.adapter", reason="needs triton")
dropout = pytest.importorskip("tunesmith.kernels.fused.dropout", reason="needs triton")

SHAPES = [(7, 100, 8), (1, 16, 1), (70, 101, 24), (3, 300, 128), (0, 16, 4)]  # T, K, R


def _inputs(shape, device, dtype):
    tokens, size, rank = shape
    x, dx = torch.randn(2, tokens, size + 24, device=device).to(dtype)[..., 8 : 8 + size]
    t = torch.randn(tokens, rank + 8, device=device).to(dtype)[:, 8:]
    return x, dx, t, torch.randn(rank, size, device=device).to(dtype)


def _keep(shape, p, device):
    return dropout.keep_plain(*shape[:2], p, 2**35 + 1, 6).to(device)


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_equal_the_plain_twins(device, agree, shape, dtype, p):
    x, _, t, A = _inputs(shape, device, dtype)
    keep = _keep(shape, p, device)
    drawn = (p, torch.tensor([2**35 + 1], device=device), 6) if p else ()
    projected = adapter.project(x, A, 0.5, *drawn)
    assert projected.dtype == dtype
    agree(projected, adapter.project_plain(x, A, keep, 0.5))
    grad_A = adapter.lora_grad_A(t, x, *drawn)
    assert grad_A.dtype == torch.float32
    agree(grad_A, adapter.lora_grad_A_plain(t, x, keep))
    agree(adapter.spread(t, A, *drawn), adapter.spread_plain(t, A, keep))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_long_sum_is_split_and_put_together_again(device, agree, dtype):
    tokens, size = 70, 1100
    x, _, t, A = _inputs((tokens, size, 8), device, dtype)
    drawn = 0.3, torch.tensor([2**35 + 1], device=device), 6
    assert adapter._split(size, 2, 64, 256)[1] > 1
    agree(adapter.project(x, A, 1.0, *drawn), adapter.project_plain(x, A, _keep((tokens, size), 0.3, device)))
    x, _, t, _ = _inputs((1100, 70, 8), device, dtype)
    agree(adapter.lora_grad_A(t, x, *drawn), adapter.lora_grad_A_plain(t, x, _keep((1100, 70), 0.3, device)))


@pytest.mark.parametrize(
    ("length", "tiles", "step"), [(0, 1, 64), (1, 0, 64), (1, 1, 64), (256, 1, 64), (1000, 3, 64), (4096, 16, 64), (14336, 300, 32)]
)
def test_shares_of_a_split_sum_cover_it_and_none_is_empty(length, tiles, step):
    steps, splits = adapter._split(length, tiles, step, 256)
    assert (splits - 1) * steps * step <= length <= splits * steps * step


def test_wide_factors_are_rounded_to_the_type_of_x(device, agree):
    x, _, t, A = _inputs((7, 100, 8), device, torch.bfloat16)
    A = A.float()  # of values bf16 can hold: the interpreter would cut others off instead of rounding
    keep = _keep((7, 100), 0.0, device)
    agree(adapter.project(x, A), adapter.project_plain(x, A, keep))
    agree(adapter.spread(t, A), adapter.spread_plain(t, A, keep))


@pytest.mark.parametrize("size", [96, 101])
def test_all_functions_draw_one_mask(device, size):
    """Each is fed so that its result is the mask itself."""
    tokens = 20
    drawn = 0.4, torch.tensor([8], device=device), 3
    ones, eye = torch.ones(tokens, size, device=device), torch.eye(size, device=device)
    masks = [
        dropout.drop(ones, *drawn),
        adapter.project(ones, eye, 1.0, *drawn),
        adapter.lora_grad_A(torch.eye(tokens, device=device), ones, *drawn),
        adapter.spread(torch.ones(tokens, 1, device=device), torch.ones(1, size, device=device), *drawn),
    ]
    expected = dropout.keep_plain(tokens, size, 0.4, 8, 3).float()
    for mask in masks:
        assert torch.equal(mask.cpu(), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_captured_graph_holds_all_three_and_follows_the_seed(agree):
    shape = (300, 1024, 32)
    x, _, t, A = _inputs(shape, "cuda", torch.bfloat16)
    seed = torch.tensor([1], device="cuda")

    def products():
        return (
            adapter.project(x, A, 1.0, 0.3, seed, 6),
            adapter.lora_grad_A(t, x, 0.3, seed, 6),
            adapter.spread(t, A, 0.3, seed, 6),
        )

    products()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = products()
        seed += 1
    for value in (1, 2):
        graph.replay()
        keep = dropout.keep_plain(*shape[:2], 0.3, value, 6).cuda()
        torch.testing.assert_close(outputs[0], adapter.project_plain(x, A, keep), rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(outputs[1], adapter.lora_grad_A_plain(t, x, keep), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(outputs[2], adapter.spread_plain(t, A, keep), rtol=1e-2, atol=1e-2)
