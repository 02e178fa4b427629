"""Proves that the adapter's thin products drop exactly what `dropout` drops, for odd sizes, strides and split sums."""

from functools import partial

import pytest
import torch

dropout = pytest.importorskip("tunesmith.kernels.fused.dropout", reason="needs triton")
input_side = pytest.importorskip("tunesmith.kernels.fused.input_side", reason="needs triton")
output_side = pytest.importorskip("tunesmith.kernels.fused.output_side", reason="needs triton")
split_sum = pytest.importorskip("tunesmith.kernels.fused.split_sum", reason="needs triton")

from tunesmith.kernels.factors import room  # noqa: E402

SHAPES = [(7, 100, 8), (1, 16, 1), (70, 101, 24), (3, 300, 128), (0, 16, 4)]  # T, K, R
SEED, SALT = 2**35 + 1, 6


def _inputs(shape, device, dtype):
    tokens, size, rank = shape
    x = torch.randn(tokens, size + 24, device=device).to(dtype)[..., 8 : 8 + size]
    t = torch.randn(tokens, rank + 8, device=device).to(dtype)[:, 8:]
    return x, t, torch.randn(rank, size, device=device).to(dtype)


def _keep(shape, p, device):
    return dropout.keep_plain(*shape[:2], p, SEED, SALT).to(device)


def _drawn(p, device):
    return (p, torch.tensor([SEED], device=device), SALT) if p else ()


def _agree_on_inputs(agree, shape, device, dtype, p):
    """The products on the side of the inputs, against their plain twins."""
    x, t, A = _inputs(shape, device, dtype)
    keep = _keep(shape, p, device)
    tokens, size, rank = shape
    wide, projected = input_side.project(x, A, 0.5, *_drawn(p, device))
    assert projected.dtype == wide.dtype == dtype
    assert wide.shape == (tokens, size + room(rank))
    assert torch.equal(wide[:, :size], x)
    assert torch.equal(wide[:, size : size + rank], projected)
    assert not wide[:, size + rank :].any()
    agree(projected, input_side.project_plain(x, A, keep, 0.5))
    beside = torch.randn(tokens, size + 5, device=device).to(dtype)
    dx, given = beside[:, :size], beside.clone()
    plain_dx = input_side.spread_plain(t, A, dx, keep, 0.5)
    input_side.spread(t, A, dx, 0.5, *_drawn(p, device))
    agree(dx, plain_dx)
    assert torch.equal(beside[:, size:], given[:, size:]), "it wrote beside its columns"
    for kind in {torch.float32, dtype}:
        before = torch.randn(rank, size, device=device).to(kind)
        grad_A = before.clone()
        input_side.input_gradient(t, x, grad_A, 0.5, *_drawn(p, device))
        agree(grad_A, before + input_side.input_gradient_plain(t, x, keep, 0.5))


def _agree_on_outputs(agree, shape, device, dtype):
    """The product of the output's side ``[T, N]``, its columns and the thin one's being parts of wider matrices."""
    dy, xA, _ = _inputs(shape, device, dtype)
    before = torch.randn(dy.shape[1], xA.shape[1], device=device)
    grad_B = before.clone()
    output_side.output_gradient(dy, xA, grad_B)
    agree(grad_B, before + output_side.output_gradient_plain(dy, xA))


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_that_read_the_input_equal_the_plain_twins(device, agree, shape, dtype, p):
    _agree_on_inputs(agree, shape, device, dtype, p)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7, 100, 8), (1, 16, 1), (150, 300, 16), (70, 101, 128), (0, 16, 4)])
def test_the_product_of_the_outputs_side_equals_the_plain_twin(device, agree, shape, dtype):
    _agree_on_outputs(agree, shape, device, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_long_sums_are_split_and_put_together_again_time_after_time(device, agree, dtype):
    assert split_sum.shares(1100, 2, 64, 256)[1] > 1
    assert split_sum.shares(1100, 2, 64, 128)[1] > 1
    for _ in range(2):  # counters are as they were
        _agree_on_inputs(agree, (70, 1100, 8), device, dtype, 0.3)
        _agree_on_inputs(agree, (1100, 70, 8), device, dtype, 0.3)
        _agree_on_outputs(agree, (300, 500, 8), device, dtype)
    assert not split_sum.arrivals(torch.zeros(1, device=device).device).any()


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("shape", [(7, 100, 8), (300, 1100, 16)])
def test_what_is_added_is_rounded_first(device, shape, side):
    """To the bit what autograd would have added: a run that was resumed goes on with the digits of one that was not."""
    x, t, _ = _inputs(shape, device, torch.float32)
    if side == "input":
        add, place = partial(input_side.input_gradient, t, x), shape[:0:-1]
        settings = (0.3, *_drawn(0.3, device))
    else:
        add, place, settings = partial(output_side.output_gradient, x, t), shape[1:], ()
    alone, added = torch.zeros(place, device=device), torch.randn(place, device=device)
    wanted = added.clone()
    add(alone, *settings)
    add(added, *settings)
    assert torch.equal(added, wanted + alone)


@pytest.mark.parametrize(
    ("length", "tiles", "step"), [(0, 1, 64), (1, 0, 64), (1, 1, 64), (256, 1, 64), (1000, 3, 64), (4096, 16, 64), (14336, 300, 32)]
)
def test_shares_of_a_split_sum_cover_it_and_none_is_empty(length, tiles, step):
    steps, splits = split_sum.shares(length, tiles, step, 256)
    assert (splits - 1) * steps * step <= length <= splits * steps * step


def test_wide_factors_are_rounded_to_the_type_of_x(device, agree):
    x, t, A = _inputs((7, 100, 8), device, torch.bfloat16)
    A = A.float()  # of values bf16 can hold: the interpreter would cut others off instead of rounding
    keep = _keep((7, 100), 0.0, device)
    agree(input_side.project(x, A)[1], input_side.project_plain(x, A, keep))
    dx = torch.zeros_like(x)
    input_side.spread(t, A, dx)
    agree(dx, input_side.spread_plain(t, A, torch.zeros_like(x), keep))


@pytest.mark.parametrize("size", [96, 101])
def test_all_functions_draw_one_mask(device, size):
    """Each is fed so that its result is the mask itself."""
    tokens = 20
    drawn = 0.4, torch.tensor([8], device=device), 3
    ones, eye = torch.ones(tokens, size, device=device), torch.eye(size, device=device)
    dx = torch.zeros(tokens, size, device=device)
    input_side.spread(torch.ones(tokens, 1, device=device), torch.ones(1, size, device=device), dx, 1.0, *drawn)
    rows = torch.zeros(tokens, size, device=device)
    input_side.input_gradient(torch.eye(tokens, device=device), ones, rows, 1.0, *drawn)
    masks = [
        dropout.drop(ones, *drawn),
        input_side.project(ones, eye, 1.0, *drawn)[1],
        rows,
        dx,
    ]
    expected = dropout.keep_plain(tokens, size, 0.4, 8, 3).float()
    for mask in masks:
        assert torch.equal(mask.cpu(), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_captured_graph_holds_all_products_and_follows_the_seed():
    shape = (300, 1024, 16)
    x, t, A = _inputs(shape, "cuda", torch.bfloat16)
    xA, seed = torch.randn(300, 16, device="cuda").bfloat16(), torch.tensor([1], device="cuda")

    def products():
        dx = torch.zeros_like(x)
        input_side.spread(t, A, dx, 0.5, 0.3, seed, SALT)
        grad_A, grad_B = torch.zeros_like(A, dtype=torch.float32), torch.zeros(1024, 16, device="cuda")
        input_side.input_gradient(t, x, grad_A, 0.5, 0.3, seed, SALT)
        output_side.output_gradient(x, xA, grad_B)
        return input_side.project(x, A, 1.0, 0.3, seed, SALT)[1], grad_A, dx, grad_B

    products()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = products()
        seed += 1
    for value in (1, 2):
        graph.replay()
        keep = dropout.keep_plain(*shape[:2], 0.3, value, SALT).cuda()
        expected = (
            input_side.project_plain(x, A, keep),
            input_side.input_gradient_plain(t, x, keep, 0.5),
            input_side.spread_plain(t, A, torch.zeros_like(x), keep, 0.5),
            output_side.output_gradient_plain(x, xA),
        )
        for mine, plain in zip(outputs, expected):
            torch.testing.assert_close(mine, plain, rtol=1e-2, atol=1e-2)
