"""Proves that the adapter's thin products drop exactly what `dropout` drops, for odd sizes, strides and split sums."""

import pytest
import torch

dropout = pytest.importorskip("tunesmith.kernels.fused.dropout", reason="needs triton")
input_side = pytest.importorskip("tunesmith.kernels.fused.input_side", reason="needs triton")
output_side = pytest.importorskip("tunesmith.kernels.fused.output_side", reason="needs triton")
split_sum = pytest.importorskip("tunesmith.kernels.fused.split_sum", reason="needs triton")

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
    """Both products that read x, against their plain twins."""
    x, t, A = _inputs(shape, device, dtype)
    keep = _keep(shape, p, device)
    projected = input_side.project(x, A, 0.5, *_drawn(p, device))
    assert projected.dtype == dtype
    agree(projected, input_side.project_plain(x, A, keep, 0.5))
    grad_A, change = input_side.input_gradients(t, x, A, *_drawn(p, device))
    assert grad_A.dtype == torch.float32
    for mine, plain in zip((grad_A, change), input_side.input_gradients_plain(t, x, A, keep)):
        agree(mine, plain)


def _agree_on_outputs(agree, shape, device, dtype):
    """The products of the output's side ``[T, N]``, its columns and the thin ones' being parts of wider matrices."""
    tokens, size, rank = shape
    dy, xA, _ = _inputs(shape, device, dtype)
    B, t = torch.randn(size, rank, device=device).to(dtype), torch.full((tokens, rank + 3), 7.0, device=device, dtype=dtype)
    grad_B = output_side.output_gradients(dy, B, xA, 0.5, t[:, 3:], torch.float32)
    y = torch.randn(tokens, size + 3, device=device).to(dtype)
    beside, expected = y[:, :3].clone(), output_side.add_expanded_plain(xA, B, y[:, 3:])
    output_side.add_expanded(xA, B, y[:, 3:])
    agree(y[:, 3:], expected)
    assert torch.equal(y[:, :3], beside), "it wrote beside its columns"
    expected_B, expected_t = output_side.output_gradients_plain(dy, B, xA, 0.5)
    agree(grad_B, expected_B)
    agree(t[:, 3:], expected_t)
    assert (t[:, :3] == 7).all(), "it wrote beside its columns"


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_that_read_the_input_equal_the_plain_twins(device, agree, shape, dtype, p):
    _agree_on_inputs(agree, shape, device, dtype, p)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7, 100, 8), (1, 16, 1), (150, 300, 16), (70, 101, 128), (0, 16, 4)])
def test_products_of_the_outputs_side_equal_the_plain_twins(device, agree, shape, dtype):
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
    agree(input_side.project(x, A), input_side.project_plain(x, A, keep))
    agree(input_side.input_gradients(t, x, A)[1], input_side.input_gradients_plain(t, x, A, keep)[1])


@pytest.mark.parametrize("size", [96, 101])
def test_all_functions_draw_one_mask(device, size):
    """Each is fed so that its result is the mask itself."""
    tokens = 20
    drawn = 0.4, torch.tensor([8], device=device), 3
    ones, eye = torch.ones(tokens, size, device=device), torch.eye(size, device=device)
    masks = [
        dropout.drop(ones, *drawn),
        input_side.project(ones, eye, 1.0, *drawn),
        input_side.input_gradients(torch.eye(tokens, device=device), ones, torch.ones(tokens, size, device=device), *drawn)[0],
        input_side.input_gradients(torch.ones(tokens, 1, device=device), ones, torch.ones(1, size, device=device), *drawn)[1],
    ]
    expected = dropout.keep_plain(tokens, size, 0.4, 8, 3).float()
    for mask in masks:
        assert torch.equal(mask.cpu(), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_captured_graph_holds_all_products_and_follows_the_seed():
    shape = (300, 1024, 16)
    x, t, A = _inputs(shape, "cuda", torch.bfloat16)
    B, t_out = torch.randn(1024, 16, device="cuda").bfloat16(), torch.empty(300, 16, dtype=torch.bfloat16, device="cuda")
    seed = torch.tensor([1], device="cuda")

    def products():
        return (
            input_side.project(x, A, 1.0, 0.3, seed, SALT),
            *input_side.input_gradients(t, x, A, 0.3, seed, SALT),
            output_side.output_gradients(x, B, t, 1.0, t_out, torch.float32),
            t_out,
        )

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
            *input_side.input_gradients_plain(t, x, A, keep),
            *output_side.output_gradients_plain(x, B, t, 1.0),
        )
        for mine, plain in zip(outputs, expected):
            torch.testing.assert_close(mine, plain, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_in_training_less_than_half_a_last_digit_is_added_on_average(device, sign):
    """xA Bᵀ is an eighth of bf16's last digit at 1: rounded to the nearest it would vanish."""
    tokens, size, rank = 96, 160, 8
    digit = 2.0**-7
    xA, B = (torch.full((n, rank), v, device=device).bfloat16() for n, v in ((tokens, digit / 8), (size, 1.0 / rank)))
    seed = torch.tensor([5 << 32], device=device)

    def added(**draw):
        y = torch.full((tokens, size), sign * 1.0, device=device).bfloat16()
        output_side.add_expanded(xA, sign * B, y, **draw)
        return sign * (y.float() - sign)

    assert not added().any()
    change = added(seed=seed, salt=3)
    assert set(change.unique().tolist()) == {0.0, digit}
    # of 15,360 draws with a chance of an eighth; six standard deviations
    assert abs(float((change > 0).float().mean()) - 1 / 8) < 6 * (7 / 64 / (tokens * size)) ** 0.5
    assert torch.equal(change, added(seed=seed, salt=3))
    for other in ({"seed": seed + 1, "salt": 3}, {"seed": seed, "salt": 4}):
        share = (added(**other) == change).float().mean()  # independent draws agree in 1 - 2 · 1/8 · 7/8 of the places
        assert abs(float(share) - 50 / 64) < 0.03
