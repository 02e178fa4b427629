"""Proves that head and cross-entropy in one give the loss and gradient of all logits at once, whatever the blocks."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.kernels import cross_entropy
from tunesmith.kernels.cross_entropy import linear_cross_entropy, linear_cross_entropy_plain

TOKENS, WIDTH, VOCABULARY = 5, 4, 7
BLOCKS = {"one block": (1024, 1024), "rows and words in blocks, the last short": (2, 3), "one logit a block": (1, 1)}
SHAPES = {"plain": {}, "softcap": {"softcap": 2.0}, "scale": {"logit_scale": 0.25}, "both": {"softcap": 3.0, "logit_scale": 1.5}}


@pytest.fixture(params=BLOCKS)
def blocks(request, monkeypatch):
    """Tokens and words of a block."""
    monkeypatch.setattr(cross_entropy, "BLOCK_ROWS", BLOCKS[request.param][0])
    monkeypatch.setattr(cross_entropy, "BLOCK_COLUMNS", BLOCKS[request.param][1])
    return BLOCKS[request.param]


shapes = pytest.mark.parametrize("shape", SHAPES)


def _inputs(dtype=torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    hidden = torch.randn(TOKENS, WIDTH, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, dtype=torch.float64).to(dtype)
    return hidden, weight, torch.tensor([0, 6, 3, 3, 1])


@shapes
@pytest.mark.usefixtures("blocks")
def test_gradient_is_that_of_finite_differences(shape):
    hidden, weight, targets = _inputs()
    assert torch.autograd.gradcheck(lambda h: linear_cross_entropy(h, weight, targets, **SHAPES[shape]), hidden)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@shapes
@pytest.mark.usefixtures("blocks")
def test_value_and_gradient_equal_the_plain_twin(shape, dtype, tolerance):
    hidden, weight, targets = _inputs(dtype)
    results = []
    for function in (linear_cross_entropy, linear_cross_entropy_plain):
        loss = function(hidden, weight, targets, **SHAPES[shape])
        assert loss.dtype == dtype
        results.append((loss, *torch.autograd.grad(loss / 3, hidden)))
    torch.testing.assert_close(results[0], results[1], rtol=tolerance, atol=tolerance)


def test_loss_is_the_sum_that_torch_gives():
    hidden, weight, targets = _inputs()
    expected = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    torch.testing.assert_close(linear_cross_entropy(hidden, weight, targets), expected)


def test_a_head_that_knows_nothing_costs_the_logarithm_of_the_vocabulary():
    hidden, weight, targets = _inputs()
    loss = linear_cross_entropy(torch.zeros_like(hidden), weight, targets)
    assert float(loss) == pytest.approx(TOKENS * math.log(VOCABULARY), rel=1e-12)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("height", [1e3, 1e5])
def test_extreme_logits_give_a_finite_exact_loss(height):
    weight = torch.eye(3)
    hidden = torch.tensor([[height, 0.0, 0.0], [-height, 0.0, 0.0]], requires_grad=True)
    loss = linear_cross_entropy(hidden, weight, torch.tensor([1, 1]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(height + math.log(2), rel=1e-6)
    torch.testing.assert_close(hidden.grad, torch.tensor([[1.0, -1.0, 0.0], [0.0, -0.5, 0.5]]))


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("height", [10.0, 30.0, 80.0])
def test_what_a_sure_prediction_has_left_to_learn_is_exact(height):
    hidden = torch.tensor([[0.0, height, 0.5, 0.0]], requires_grad=True)
    loss = linear_cross_entropy(hidden, torch.eye(4), torch.tensor([1]))
    loss.backward()
    others = (2 + math.exp(0.5)) * math.exp(-height)
    assert loss.item() == pytest.approx(math.log1p(others), rel=1e-5)
    assert hidden.grad[0, 1].item() == pytest.approx(-others / (1 + others), rel=1e-5)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("target", [0, 2])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_logit_that_is_no_number_is_seen_in_the_loss(number, target):
    hidden = torch.tensor([[number, 1.0]], requires_grad=True)
    loss = linear_cross_entropy(hidden, torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]]), torch.tensor([target]))
    assert not math.isfinite(loss.item())


def test_a_target_outside_the_vocabulary_is_no_loss_of_zero():
    hidden, weight, _ = _inputs()
    loss = linear_cross_entropy(hidden.detach(), weight, torch.tensor([0, 1, 2, 3, VOCABULARY]))
    assert math.isnan(loss.item())


def test_logits_rise_far_above_those_of_earlier_blocks(monkeypatch):
    monkeypatch.setattr(cross_entropy, "BLOCK_COLUMNS", 2)
    hidden = torch.eye(3, dtype=torch.float64).requires_grad_()
    weight = torch.tensor([[-50.0, 3.0, 9.0], [0.0, 3.5, 8.0], [7.9, 90.0, 8.5], [8.1, -4.0, 8.6], [500.0, 0.0, 8.7]]).double()
    targets = torch.tensor([3, 0, 2])
    results = []
    for function in (linear_cross_entropy, linear_cross_entropy_plain):
        loss = function(hidden, weight, targets)
        results.append((loss, *torch.autograd.grad(loss, hidden)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)


def test_logits_of_one_block_live_at_a_time_and_none_is_saved():
    hidden, weight = torch.randn(64, 8, requires_grad=True), torch.randn(8192, 8)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        loss = linear_cross_entropy(hidden, weight, torch.arange(64))
    assert saved == [hidden.shape]
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, record_shapes=True) as profile:
        linear_cross_entropy(hidden, weight, torch.arange(64))
    widths = [shape[1] for event in profile.events() for shape in event.input_shapes if len(shape) == 2 and shape[0] == 64]
    assert max(widths) == cross_entropy.BLOCK_COLUMNS
    assert torch.isfinite(loss)


def test_evaluation_without_gradient_gives_the_same_value():
    hidden, weight, targets = _inputs()
    loss = linear_cross_entropy(hidden, weight, targets, softcap=2.0)
    detached = linear_cross_entropy(hidden.detach(), weight, targets, softcap=2.0)
    assert torch.equal(loss, detached)
    assert not detached.requires_grad


def test_no_token_costs_nothing():
    hidden, weight, targets = _inputs()
    loss = linear_cross_entropy(hidden[:0], weight, targets[:0])
    assert float(loss.detach()) == 0
    assert torch.equal(torch.autograd.grad(loss, hidden)[0], torch.zeros_like(hidden))


def test_half_precision_inputs_give_a_float32_loss_near_the_twin():
    hidden, weight, targets = _inputs(torch.bfloat16)
    loss = linear_cross_entropy(hidden, weight, targets)
    (gradient,) = torch.autograd.grad(loss, hidden)
    wide = hidden.detach().double().requires_grad_()
    expected = linear_cross_entropy_plain(wide, weight.double(), targets)
    assert (loss.dtype, gradient.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(loss.double(), expected, rtol=0.02, atol=0.02)
    torch.testing.assert_close(gradient.double(), torch.autograd.grad(expected, wide)[0], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rise", [7.5, 12.0])
def test_sums_over_a_vocabulary_do_not_leave_half_precision(dtype, rise, monkeypatch):
    """rise: of the logits from one block to the next, below what moves the sums and above it."""
    monkeypatch.setattr(cross_entropy, "BLOCK_COLUMNS", 256)
    weight = (torch.randn(1024, 3) * 4).to(dtype)
    weight[:, 0] = rise * (torch.arange(1024) // 256 % 2)
    hidden = torch.tensor([[1.0, 0.0, 0.0]] * 2).to(dtype).requires_grad_()
    targets = torch.tensor([0, 1000])
    (gradient,) = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), hidden)
    wide = hidden.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(linear_cross_entropy_plain(wide, weight.double(), targets), wide)
    torch.testing.assert_close(gradient.double(), expected, rtol=0.02, atol=0.1)


def test_what_words_far_below_the_target_say_is_not_lost_in_half_precision():
    """Their exponentials are below fp16's smallest number, the gradient is not."""
    weight = torch.tensor([[18.0, 0.0], [0.0, 2.0**12], [0.0, 2.0**12]]).half()
    hidden = torch.tensor([[1.0, 0.0]]).half().requires_grad_()
    (gradient,) = torch.autograd.grad(linear_cross_entropy(hidden, weight, torch.tensor([0])), hidden)
    assert gradient[0, 1].item() == pytest.approx(2**13 * math.exp(-18), rel=0.01)


@shapes
def test_inputs_are_left_as_they_were(shape):
    hidden, weight, targets = _inputs()
    before = [t.detach().clone() for t in (hidden, weight, targets)]
    linear_cross_entropy(hidden, weight, targets, **SHAPES[shape]).backward()
    assert all(torch.equal(a, b) for a, b in zip(before, (hidden, weight, targets)))
