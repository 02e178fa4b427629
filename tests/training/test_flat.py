"""Proves that flat parameters are the same parameters: one buffer, the same updates, and no copy that falls behind."""

import torch
from torch import nn
from torch.optim import AdamW

from tunesmith.training.flat import FlatParameters

SHAPES = [(3, 5), (4, 2), (7,)]


def parameters():
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def give_gradients(given, seed):
    torch.manual_seed(seed)
    for parameter in given:
        parameter.grad = torch.randn_like(parameter)


def test_values_shapes_and_identity_stay():
    plain, given = parameters(), give(parameters())
    FlatParameters(given, torch.float32)
    for before, after in zip(plain, given):
        assert isinstance(after, nn.Parameter)
        assert torch.equal(before, after)


def test_a_change_of_the_buffer_is_a_change_of_every_parameter():
    given = give(parameters())
    flat = FlatParameters(given, torch.float32)
    with torch.no_grad():
        flat.flat.fill_(2)
    assert all(bool((parameter == 2).all()) for parameter in given)


def test_gradients_present_are_taken_and_later_ones_added():
    given = parameters()
    give_gradients(given, 1)
    first = torch.cat([p.grad.flatten() for p in given])
    flat = FlatParameters(given, torch.float32)
    assert all(parameter.grad is None for parameter in given)
    assert torch.equal(flat.grad, first)
    give_gradients(given, 2)
    second = torch.cat([p.grad.flatten() for p in given])
    flat.gather()
    torch.testing.assert_close(flat.grad, first + second)


def test_what_a_backward_pass_adds_to_a_sum_itself_is_not_gathered():
    given = parameters()
    flat = FlatParameters(give(given), torch.float32)
    first = flat.grad.clone()
    for parameter in given[1:]:
        parameter.gradient_sum += 1
    given[0].grad = torch.ones_like(given[0])
    flat.gather()
    flat.gather()
    torch.testing.assert_close(flat.grad, first + 1)
    flat.release()
    assert not any(hasattr(p, "gradient_sum") for p in given)


def test_updates_are_those_of_separate_parameters():
    plain, given = parameters(), parameters()
    give_gradients(given, 1)
    flat = FlatParameters(given, torch.float32)
    separate, together = AdamW(plain, lr=0.1, weight_decay=0.1), AdamW([flat.flat], lr=0.1, weight_decay=0.1)
    give_gradients(plain, 1)
    for seed in (2, 3, 4):
        separate.step()
        together.step()
        flat.grad.zero_()
        give_gradients(plain, seed)
        give_gradients(given, seed)
        flat.gather()
    for before, after in zip(plain, given):
        torch.testing.assert_close(before, after)


def test_compute_copies_follow_only_when_refreshed_and_are_gone_when_released():
    given = parameters()
    flat = FlatParameters(give(given), torch.bfloat16)
    assert all(torch.equal(p.compute_copy, p.to(torch.bfloat16)) for p in given)
    with torch.no_grad():
        flat.flat.mul_(3)
    flat.refresh()
    assert all(torch.equal(p.compute_copy, p.to(torch.bfloat16)) for p in given)
    flat.release()
    assert not any(hasattr(p, "compute_copy") for p in given)


def test_parameters_of_the_compute_type_need_no_copies():
    given = parameters()
    flat = FlatParameters(give(given), torch.float32)
    assert not any(hasattr(p, "compute_copy") for p in given)
    flat.refresh()
    flat.release()


def give(given):
    give_gradients(given, 1)
    return given
