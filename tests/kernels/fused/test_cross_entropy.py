"""Proves that losses and gradient in the logits' place are autograd's, for any vocabulary, row stride, softcap and scale."""

import pytest
import torch

from tunesmith.kernels.cross_entropy import linear_cross_entropy_plain

fused = pytest.importorskip("tunesmith.kernels.fused.cross_entropy", reason="needs triton")

SIZES = [(7, 1003), (1, 1), (3, 64), (2, 9001), (0, 8)]
FORMS = {"plain": (0.0, 1.0), "softcap": (5.0, 1.0), "scale": (0.0, 0.25), "both": (3.0, 1.5)}

forms = pytest.mark.parametrize("form", FORMS)


def _inputs(rows, size, device, dtype=torch.float32):
    """Logits as columns of a wider matrix, and targets of which every third is none."""
    wide = torch.randn(rows, size + 24, device=device).mul_(4).to(dtype)
    targets = torch.randint(0, size, (rows,), device=device)
    targets[2::3] = fused.IGNORE
    return wide, wide[:, 8 : 8 + size], targets


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@forms
@pytest.mark.parametrize("shape", SIZES)
def test_losses_and_gradient_equal_the_plain_twin(device, agree, shape, form, dtype):
    wide, logits, targets = _inputs(*shape, device, dtype)
    expected, gradient = fused.softmax_gradient_plain(logits, targets, *FORMS[form])
    beside = wide[:, [*range(8), *range(-16, 0)]]
    losses = fused.softmax_gradient(logits, targets, *FORMS[form], gradient=True)
    assert (losses.dtype, losses.shape) == (torch.float32, shape[:1])
    agree(losses, expected)
    agree(logits, gradient)
    assert torch.equal(wide[:, [*range(8), *range(-16, 0)]], beside)


@forms
def test_losses_alone_leave_the_logits(device, agree, form):
    wide, logits, targets = _inputs(7, 1003, device)
    before = wide.clone()
    expected, _ = fused.softmax_gradient_plain(logits, targets, *FORMS[form])
    agree(fused.softmax_gradient(logits, targets, *FORMS[form], gradient=False), expected)
    assert torch.equal(wide, before)


def test_rows_without_a_target_have_neither_loss_nor_gradient(device):
    _, logits, targets = _inputs(6, 100, device)
    losses = fused.softmax_gradient(logits, targets, 0.0, 1.0, gradient=True)
    assert (losses[2::3] == 0).all()
    assert (logits[2::3] == 0).all()
    assert (logits[targets >= 0].sum(1).abs() < 1e-5).all()  # probabilities less a one


@forms
def test_product_with_the_head_and_the_scale_give_the_gradient_of_the_hidden_states(device, form):
    softcap, scale = FORMS[form]
    hidden = torch.randn(9, 16, device=device, requires_grad=True)
    weight = torch.randn(1003, 16, device=device)
    targets = torch.randint(0, 1003, (9,), device=device)
    loss = linear_cross_entropy_plain(hidden, weight, targets, softcap=softcap, logit_scale=scale)
    (expected,) = torch.autograd.grad(loss, hidden)
    logits = hidden.detach() @ weight.T
    losses = fused.softmax_gradient(logits, targets, softcap, scale, gradient=True)
    torch.testing.assert_close(losses.sum(), loss.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits @ weight * scale, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_large_logits_neither_overflow_nor_vanish(device, shift):
    _, logits, targets = _inputs(3, 5000, device)
    logits.mul_(64).round_().div_(64)  # so that the shift is exact
    expected, gradient = fused.softmax_gradient_plain(logits, targets, 0.0, 1.0)
    logits += shift
    losses = fused.softmax_gradient(logits, targets, 0.0, 1.0, gradient=True)
    torch.testing.assert_close(losses, expected, rtol=1e-3, atol=1e-3)  # a unit in the last place of the shift
    torch.testing.assert_close(logits, gradient, rtol=1e-3, atol=1e-3)


def test_a_masked_vocabulary_has_the_loss_of_the_rest(device, agree):
    _, logits, _ = _inputs(2, 9001, device)
    logits[:, :5000] = -torch.inf  # more than the first block
    targets = torch.tensor([6000, 9000], device=device)
    expected, gradient = fused.softmax_gradient_plain(logits, targets, 0.0, 1.0)
    agree(fused.softmax_gradient(logits, targets, 0.0, 1.0, gradient=True), expected)
    agree(logits, gradient)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, in the interpreter
def test_nan_infinity_and_a_target_beyond_the_vocabulary_show_in_the_loss(device):
    _, logits, _ = _inputs(4, 100, device)
    logits[0, 50], logits[1, 7] = torch.nan, torch.inf
    targets = torch.tensor([3, 4, 100, 5], device=device)
    losses = fused.softmax_gradient(logits, targets, 0.0, 1.0, gradient=False)
    assert losses.isfinite().tolist() == [False, False, False, True]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_replayed_graph_works_on_what_lies_in_the_logits_then(agree):
    _, logits, targets = _inputs(7, 1003, "cuda", torch.bfloat16)
    source = logits.clone()
    fused.softmax_gradient(logits, targets, 3.0, 1.5, gradient=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits.copy_(source)
        losses = fused.softmax_gradient(logits, targets, 3.0, 1.5, gradient=True)
    for _ in range(2):
        source.normal_()
        targets.random_(0, 1003)
        graph.replay()
        expected, gradient = fused.softmax_gradient_plain(source, targets, 3.0, 1.5)
        agree(losses, expected)
        agree(logits, gradient)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_neither_rows_nor_the_values_of_softcap_and_scale_compile_anew():
    logits, targets = torch.randn(64, 1024, device="cuda"), torch.zeros(64, dtype=torch.int64, device="cuda")
    fused.softmax_gradient(logits, targets, 30.0, 0.5, gradient=True)
    compiled = len(fused._softmax_gradient.function.device_caches[torch.cuda.current_device()][0])
    for rows, softcap, scale in ((slice(0, 1), 1.0, 2.0), (slice(1, 17), 50.0, 0.1), (slice(17, 64), 16.0, 16.0)):
        fused.softmax_gradient(logits[rows], targets[rows], softcap, scale, gradient=True)
    assert len(fused._softmax_gradient.function.device_caches[torch.cuda.current_device()][0]) == compiled
