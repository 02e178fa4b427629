"""Proves that the QLoRA linear of a GPU, its thin products inside the thick ones, is the plain twin, for any cut of the weight."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="needs triton")

from tunesmith.kernels.counter_side import MAX_FUSED_RANK, CounterSide
from tunesmith.kernels.factors import Behind, room
from tunesmith.kernels.fused_lora_linear import FusedLoraLinear

TOKENS, SIZE, SALT, SCALING = 21, 40, 3, 1.25
MEMBERS = [((32,), (8,)), ((24, 8, 8), (3, 3, 3)), ((16, 16), (8, 2)), ((8,), (MAX_FUSED_RANK + 5,))]  # widths, ranks


class Case:
    """Random factors and a frozen weight, given in blocks of so many rows with the factors behind them."""

    def __init__(self, widths, ranks, device, dtype, block, p=0.3, bias=True):
        torch.manual_seed(1)
        self.x = torch.randn(TOKENS, SIZE, device=device).to(dtype).requires_grad_()
        self.factors = [torch.randn(r, SIZE, device=device, requires_grad=True) for r in ranks]
        self.factors += [torch.randn(n, r, device=device, requires_grad=True) for n, r in zip(widths, ranks)]
        self.W = torch.randn(sum(widths), SIZE, device=device).to(dtype)
        self.bias = torch.randn(sum(widths), device=device).to(dtype) if bias else None
        self.members, self.block, self.p = len(ranks), block, p
        self.side = CounterSide.of(self.x.shape, sum(ranks), p, SALT, self.x.device)

    def weight(self):
        lora_B, first = self.factors[self.members :], 0
        wide = F.pad(self.W, (0, room(sum(b.shape[1] for b in lora_B))), value=torch.nan)
        for b, part in zip(lora_B, wide.split([b.shape[0] for b in lora_B])):
            behind = Behind(wide.shape[1] - SIZE, first, b.detach().to(wide.dtype))
            behind.write(part[:, SIZE:], slice(0, b.shape[0]))
            first += b.shape[1]
        return wide.split(self.block)

    def outputs(self):
        scale = SCALING / (1 - self.p)
        return FusedLoraLinear.apply(self.x, self.weight, self.bias, self.side, scale, self.members, *self.factors)

    def plain(self):
        A, B = self.factors[: self.members], self.factors[self.members :]
        base = F.linear(self.x.float(), self.W.float(), self.bias if self.bias is None else self.bias.float())
        x = self.x.float() * self.side.mask() / (1 - self.p)
        return [y + SCALING * (x @ a.T) @ b.T for y, a, b in zip(base.split([b.shape[0] for b in B], dim=1), A, B)]

    def slopes(self):
        torch.manual_seed(2)
        return [torch.randn(TOKENS, b.shape[0]).to(b.device) for b in self.factors[self.members :]]

    def gradients(self, outputs):
        torch.manual_seed(2)
        loss = sum((y.float() * torch.randn(y.shape).to(y.device)).sum() for y in outputs)
        leaves = [leaf for leaf in (self.x, *self.factors) if leaf.requires_grad]
        return torch.autograd.grad(loss, leaves, materialize_grads=True)


@pytest.mark.parametrize("block", [16, 1000], ids=["in blocks", "whole"])
@pytest.mark.parametrize(("widths", "ranks"), MEMBERS)
def test_values_and_gradients_equal_the_plain_twin(device, widths, ranks, block):
    case = Case(widths, ranks, device, torch.float32, block)
    mine, plain = case.outputs(), case.plain()
    torch.testing.assert_close(list(mine), plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(case.gradients(mine), case.gradients(plain), rtol=1e-4, atol=1e-3)


def test_an_input_without_gradient_and_no_bias_and_no_dropout(device):
    case = Case((24, 8, 8), (3, 3, 3), device, torch.float32, 16, p=0.0, bias=False)
    case.x.requires_grad_(False)
    mine, plain = case.outputs(), case.plain()
    torch.testing.assert_close(list(mine), plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(case.gradients(mine), case.gradients(plain), rtol=1e-4, atol=1e-3)


def test_one_members_gradient_alone(device):
    case = Case((24, 8, 8), (3, 3, 3), device, torch.float32, 16)
    torch.testing.assert_close(case.gradients(case.outputs()[1:2]), case.gradients(case.plain()[1:2]), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("widths", "ranks"), MEMBERS)
def test_gradients_are_added_to_the_sums_of_factors_that_have_one(device, widths, ranks):
    """Twice, as two micro-batches do; what is left to autograd, and what is not, make the whole gradient."""
    case = Case(widths, ranks, device, torch.float32, 16)
    wanted = case.gradients(case.plain())[1:]
    before = [torch.randn_like(factor) for factor in case.factors]
    for factor, start in zip(case.factors, before):
        factor.gradient_sum = start.clone()
    for _ in range(2):
        sum((y * slope).sum() for y, slope in zip(case.outputs(), case.slopes())).backward()
    for factor, start, gradient in zip(case.factors, before, wanted):
        left = 0 if factor.grad is None else factor.grad
        torch.testing.assert_close(factor.gradient_sum - start + left, 2 * gradient, rtol=1e-4, atol=2e-3)
    assert all(b.grad is None for b in case.factors[case.members :])


def test_less_than_half_a_last_digit_is_rounded_once_with_the_sum(device):
    """In bf16 an eighth of y's last digit, added to outputs that are not yet rounded, moves an eighth of them."""
    case = Case((512,), (8,), device, torch.bfloat16, 1000, p=0.0, bias=False)
    case.W.copy_(torch.randn(512, SIZE) / SIZE**0.5)
    case.factors[0].data.copy_(torch.randn(8, SIZE) / SIZE**0.5)
    case.factors[1].data.fill_(0.0)
    before = case.outputs()[0].detach().float()
    case.factors[1].data.copy_(3e-4 * torch.randn(512, 8).sign())
    change = case.outputs()[0].detach().float() - before
    wanted = (SCALING * (case.x.float() @ case.factors[0].T) @ case.factors[1].T).detach()
    assert float((change * wanted).sum() / (wanted * wanted).sum()) == pytest.approx(1.0, abs=0.15)
