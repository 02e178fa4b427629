"""Proves that the QLoRA linear has the values and gradients of ordinary autograd and saves no frozen weight."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tunesmith.kernels.lora_linear import lora_linear, lora_linear_plain

IN = 5
OUT = {1: (4,), 3: (4, 2, 3)}
RANKS = {1: (2,), 3: (2, 1, 3)}
SCALING = 1.25


@dataclass
class Case:
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    factors: tuple[Tensor, ...]
    members: int
    dropout_p: float

    def outputs(self, function, x: Tensor | None = None, factors: tuple[Tensor, ...] | None = None) -> tuple[Tensor, ...]:
        factors = self.factors if factors is None else factors
        torch.manual_seed(3)
        return function(
            self.x if x is None else x,
            lambda: self.weight.split(4),
            self.bias,
            factors[: self.members],
            factors[self.members :],
            SCALING,
            self.dropout_p,
        )


def _case(members: int, bias: bool, dropout_p: float, dtype=torch.float64, x_grad=True, master_dtype=None) -> Case:
    def random(*shape: int, kind=dtype) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64).to(kind)

    master = master_dtype or dtype
    lora_a = [random(r, IN, kind=master).requires_grad_() for r in RANKS[members]]
    lora_b = [random(n, r, kind=master).requires_grad_() for n, r in zip(OUT[members], RANKS[members])]
    total = sum(OUT[members])
    return Case(
        random(2, 3, IN).requires_grad_(x_grad),
        random(total, IN),
        random(total) if bias else None,
        (*lora_a, *lora_b),
        members,
        dropout_p,
    )


def _values_and_gradients(case: Case, function) -> tuple[list[Tensor], list[Tensor]]:
    leaves = [leaf for leaf in (case.x, *case.factors) if leaf.requires_grad]
    outputs = case.outputs(function)
    torch.manual_seed(9)
    loss = sum((y * torch.randn(y.shape, dtype=torch.float64).to(y.dtype)).sum() for y in outputs)
    return list(outputs), list(torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("x_grad", [True, False], ids=["x with gradient", "x without"])
@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("members", [1, 3])
def test_gradients_are_those_of_finite_differences(members, bias, dropout_p, x_grad):
    case = _case(members, bias, dropout_p, x_grad=x_grad)
    assert torch.autograd.gradcheck(lambda x, *factors: case.outputs(lora_linear, x, factors), (case.x, *case.factors))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("x_grad", [True, False], ids=["x with gradient", "x without"])
@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("members", [1, 3])
def test_values_and_gradients_equal_the_plain_twin(members, bias, dropout_p, x_grad, dtype, tolerance):
    case = _case(members, bias, dropout_p, dtype, x_grad)
    torch.testing.assert_close(
        _values_and_gradients(case, lora_linear),
        _values_and_gradients(case, lora_linear_plain),
        rtol=tolerance,
        atol=tolerance,
    )


def test_each_member_has_the_shape_of_its_input_and_its_own_width():
    assert [y.shape for y in _case(3, True, 0.0).outputs(lora_linear)] == [(2, 3, 4), (2, 3, 2), (2, 3, 3)]


def test_an_input_of_two_dimensions_and_a_strided_one_give_the_same_rows():
    case = _case(3, True, 0.0)
    flat = case.x.detach().reshape(6, IN)
    strided = flat.T.contiguous().T
    for whole, two, odd in zip(case.outputs(lora_linear), case.outputs(lora_linear, flat), case.outputs(lora_linear, strided)):
        torch.testing.assert_close(whole.reshape(6, -1), two)
        torch.testing.assert_close(two, odd)


def test_a_fresh_adapter_leaves_the_frozen_linear_as_it_was():
    case = _case(3, True, 0.4)
    factors = (*case.factors[:3], *(torch.zeros_like(b) for b in case.factors[3:]))
    expected = torch.nn.functional.linear(case.x, case.weight, case.bias).split(OUT[3], dim=-1)
    torch.testing.assert_close(case.outputs(lora_linear, factors=factors), expected)


def test_wide_masters_under_a_narrow_input_get_wide_gradients():
    case = _case(3, True, 0.4, torch.bfloat16, master_dtype=torch.float32)
    values, gradients = _values_and_gradients(case, lora_linear)
    plain_values, plain_gradients = _values_and_gradients(case, lora_linear_plain)
    assert {y.dtype for y in values} == {torch.bfloat16}
    assert [g.dtype for g in gradients] == [torch.bfloat16] + [torch.float32] * 6
    torch.testing.assert_close((values, gradients), (plain_values, plain_gradients), rtol=0.05, atol=0.15)


def test_the_frozen_weight_is_asked_for_again_in_backward_and_never_saved():
    case = _case(3, False, 0.4)
    asked, saved = [], []

    def weight() -> list[Tensor]:
        asked.append(case.weight.clone())
        return [asked[-1]]

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = lora_linear(case.x, weight, None, case.factors[:3], case.factors[3:], SCALING, 0.4)
    assert saved
    assert case.weight.shape not in saved
    assert len(asked) == 1
    sum(y.sum() for y in outputs).backward()
    assert len(asked) == 2


def test_backward_needs_no_weight_when_the_input_needs_no_gradient():
    case = _case(1, False, 0.0, x_grad=False)
    asked = []
    outputs = lora_linear(case.x, lambda: asked.append(1) or [case.weight], None, case.factors[:1], case.factors[1:], SCALING)
    outputs[0].sum().backward()
    assert asked == [1]
    assert case.factors[0].grad is not None


def test_a_member_that_is_not_used_gets_a_zero_gradient():
    case = _case(3, True, 0.0)
    first = case.outputs(lora_linear)[0]
    gradients = torch.autograd.grad(first.sum(), case.factors)
    assert all(g.abs().sum() > 0 for g in (gradients[0], gradients[3]))
    assert all(torch.equal(g, torch.zeros_like(g)) for g in (*gradients[1:3], *gradients[4:]))


def test_inputs_are_left_as_they_were():
    case = _case(3, True, 0.4)
    before = [t.detach().clone() for t in (case.x, case.weight, case.bias, *case.factors)]
    _values_and_gradients(case, lora_linear)
    assert all(torch.equal(a, b) for a, b in zip(before, (case.x, case.weight, case.bias, *case.factors)))
