"""Proves that what was saved comes back as it was, each of it once and in advance, and that no copy is left that nobody waits for.
Here copies are made at once instead of on a stream of their own (that, captured too: tests/gpu/test_update.py)."""

from contextlib import contextmanager

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tunesmith.training.offload import HostActivations, with_host_activations
from tunesmith.training.step import PackLoss

LAYERS = 6


class WithoutStreams(HostActivations):
    """Takes everything that is not a parameter, and notes what is fetched, and whether it was asked for then."""

    def __init__(self):
        super().__init__()
        self.fetched, self.in_advance, self.asked = [], 0, None

    def _leaves(self, tensor):
        return not (tensor.requires_grad and tensor.is_leaf)

    def _back(self, saved):
        self.asked = saved
        return super()._back(saved)

    def _fetch(self, place):
        self.fetched.append(place)
        self.in_advance += place != self.asked
        super()._fetch(place)

    @contextmanager
    def _beside(self, device):
        self.unjoined = True
        yield

    def _join(self):
        self.unjoined, self.leaving = False, None


def weights(trained=LAYERS):
    torch.manual_seed(0)
    return [torch.randn(8, 8, requires_grad=number >= LAYERS - trained) for number in range(LAYERS)]


def one_input(x, _, weight):
    return torch.tanh(x @ weight)


def two_inputs(x, other, weight):
    return torch.tanh(x @ weight) + other


def loss(layers, layer):
    torch.manual_seed(1)
    x, other = torch.randn(3, 8), torch.randn(3, 8)
    for weight in layers:
        x = checkpoint(layer, x, other if layer is two_inputs else None, weight, use_reentrant=False)
    return x.square().sum()


def gradients(layers):
    return [weight.grad for weight in layers if weight.requires_grad]


@pytest.mark.parametrize("layer", [one_input, two_inputs])
@pytest.mark.parametrize("trained", [LAYERS, 2], ids=["all", "the last two"])
def test_gradients_are_those_without_and_nothing_is_fetched_twice(layer, trained):
    plain, layers, activations = weights(trained), weights(trained), WithoutStreams()
    loss(plain, layer).backward()
    for _ in range(2):  # a second pass uses the buffers of the first
        activations.fetched.clear()
        for weight in layers:
            weight.grad = None
        with activations():
            total = loss(layers, layer)
        total.backward()
        activations.close()
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(gradients(layers), gradients(plain), strict=True))
        assert len(set(activations.fetched)) == len(activations.fetched)
        assert not activations.unjoined
        assert not activations.coming
    assert len(activations.buffers) == len(activations.saved) > 0


def test_all_but_the_first_come_in_advance_where_backward_asks_in_the_opposite_order():
    layers, activations = weights(), WithoutStreams()
    with activations():
        total = loss(layers, one_input)
    total.backward()
    assert activations.fetched == sorted(activations.fetched, reverse=True)
    assert activations.in_advance == len(activations.fetched) - 1


def test_a_backward_pass_that_fails_leaves_no_copy_behind(monkeypatch):
    made = []
    monkeypatch.setattr("tunesmith.training.offload.HostActivations", lambda: made.append(WithoutStreams()) or made[-1])

    @contextmanager
    def attention():
        yield

    offloaded = with_host_activations(PackLoss(lambda pack: loss(pack, one_input), None, attention))
    layers = weights()
    layers[2].register_hook(lambda grad: 1 / 0)
    with pytest.raises(ZeroDivisionError), offloaded.attention():
        offloaded.of(layers).backward()
    assert made[0].fetched
    assert not made[0].unjoined
    assert not made[0].coming
