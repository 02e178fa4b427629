"""Proves that the QLoRA linear of a GPU, its thin products inside the thick ones, is the plain twin, for any cut of the weight."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="needs triton")

from tunesmith.kernels.counter_side import MAX_FUSED_RANK, CounterSide
from tunesmith.kernels.factors import room
from tunesmith.kernels.fused_lora_linear import FusedLoraLinear

TOKENS, SIZE, SALT, SCALING = 21, 40, 3, 1.25
MEMBERS = [((32,), (8,)), ((24, 8, 8), (3, 3, 3)), ((16, 16), (8, 2)), ((8,), (MAX_FUSED_RANK + 5,))]  # widths, ranks


class Case:
    """Random factors and a frozen weight, given in blocks of so many rows: the same memory each time, or new and with
    rubbish behind its columns."""

    def __init__(self, widths, ranks, device, dtype, block, lasting, p=0.3, bias=True):
        torch.manual_seed(1)
        self.x = torch.randn(TOKENS, SIZE, device=device).to(dtype).requires_grad_()
        self.factors = [torch.randn(r, SIZE, device=device, requires_grad=True) for r in ranks]
        self.factors += [torch.randn(n, r, device=device, requires_grad=True) for n, r in zip(widths, ranks)]
        self.W = torch.randn(sum(widths), SIZE, device=device).to(dtype)
        self.bias = torch.randn(sum(widths), device=device).to(dtype) if bias else None
        self.members, self.block, self.lasting, self.p = len(ranks), block, lasting, p
        self.wide = F.pad(self.W, (0, room(sum(ranks))))
        self.side = CounterSide.of(self.x.shape, sum(ranks), p, SALT, self.x.device)

    def weight(self):
        if self.lasting:
            return self.wide.split(self.block)
        rubbish = torch.full_like(self.wide[:, SIZE:], torch.nan)
        return torch.cat([self.W, rubbish], dim=1).split(self.block)

    def outputs(self):
        scale = SCALING / (1 - self.p)
        return FusedLoraLinear.apply(self.x, self.weight, self.bias, self.lasting, self.side, scale, self.members, *self.factors)

    def plain(self):
        A, B = self.factors[: self.members], self.factors[self.members :]
        base = F.linear(self.x.float(), self.W.float(), self.bias if self.bias is None else self.bias.float())
        x = self.x.float() * self.side.mask() / (1 - self.p)
        return [y + SCALING * (x @ a.T) @ b.T for y, a, b in zip(base.split([b.shape[0] for b in B], dim=1), A, B)]

    def gradients(self, outputs):
        torch.manual_seed(2)
        loss = sum((y.float() * torch.randn(y.shape).to(y.device)).sum() for y in outputs)
        leaves = [leaf for leaf in (self.x, *self.factors) if leaf.requires_grad]
        return torch.autograd.grad(loss, leaves, materialize_grads=True)


@pytest.mark.parametrize("lasting", [True, False], ids=["kept", "made anew"])
@pytest.mark.parametrize("block", [16, 1000], ids=["in blocks", "whole"])
@pytest.mark.parametrize(("widths", "ranks"), MEMBERS)
def test_values_and_gradients_equal_the_plain_twin(device, widths, ranks, block, lasting):
    case = Case(widths, ranks, device, torch.float32, block, lasting)
    mine, plain = case.outputs(), case.plain()
    torch.testing.assert_close(list(mine), plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(case.gradients(mine), case.gradients(plain), rtol=1e-4, atol=1e-3)


def test_an_input_without_gradient_and_no_bias_and_no_dropout(device):
    case = Case((24, 8, 8), (3, 3, 3), device, torch.float32, 16, False, p=0.0, bias=False)
    case.x.requires_grad_(False)
    mine, plain = case.outputs(), case.plain()
    torch.testing.assert_close(list(mine), plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(case.gradients(mine), case.gradients(plain), rtol=1e-4, atol=1e-3)


def test_a_changed_factor_counts_though_the_weight_is_the_same_memory(device):
    case = Case((32,), (8,), device, torch.float32, 1000, True)
    case.outputs()
    case.factors[1].data.mul_(-3)
    torch.testing.assert_close(list(case.outputs()), case.plain(), rtol=1e-4, atol=1e-4)


def test_a_factor_whose_copy_is_behind_the_weight_already_is_not_copied(device):
    case = Case((24, 8), (3, 3), device, torch.float32, 1000, True)
    column = SIZE
    for b, rows in zip(case.factors[2:], (slice(0, 24), slice(24, 32))):
        b.compute_copy = case.wide[rows, column : column + 3]
        b.compute_copy.copy_(b.detach())
        column += 3
    with torch.no_grad():
        mine = case.outputs()
    torch.testing.assert_close(list(mine), [y.detach() for y in case.plain()], rtol=1e-4, atol=1e-4)


def test_one_members_gradient_alone(device):
    case = Case((24, 8, 8), (3, 3, 3), device, torch.float32, 16, False)
    torch.testing.assert_close(case.gradients(case.outputs()[1:2]), case.gradients(case.plain()[1:2]), rtol=1e-4, atol=1e-3)


def test_less_than_half_a_last_digit_is_rounded_once_with_the_sum(device):
    """In bf16 an eighth of y's last digit, added to outputs that are not yet rounded, moves an eighth of them."""
    case = Case((512,), (8,), device, torch.bfloat16, 1000, True, p=0.0, bias=False)
    case.W.copy_(torch.randn(512, SIZE) / SIZE**0.5)
    case.wide[:, :SIZE] = case.W
    case.factors[0].data.copy_(torch.randn(8, SIZE) / SIZE**0.5)
    case.factors[1].data.fill_(0.0)
    before = case.outputs()[0].detach().float()
    case.factors[1].data.copy_(3e-4 * torch.randn(512, 8).sign())
    change = case.outputs()[0].detach().float() - before
    wanted = (SCALING * (case.x.float() @ case.factors[0].T) @ case.factors[1].T).detach()
    assert float((change * wanted).sum() / (wanted * wanted).sum()) == pytest.approx(1.0, abs=0.15)
