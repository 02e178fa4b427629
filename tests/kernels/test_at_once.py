"""Proves that independent pieces of work are all done, and that an error in one comes through."""

import pytest
import torch

from tunesmith.kernels.at_once import at_once


def _device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def test_every_work_reads_what_was_there_before_and_is_there_afterwards():
    x = torch.arange(1 << 16, device=_device(), dtype=torch.float32)
    outs = [torch.zeros_like(x) for _ in range(3)]
    works = [lambda out=out, n=n: out.add_(x * n) for n, out in enumerate(outs, 1)]
    for _ in range(50):
        x.add_(1)
        at_once(x.device, *works)
        x.add_(0 * sum(outs))
    expected = 50 * torch.arange(1 << 16, dtype=torch.float32) + sum(range(1, 51))
    for n, out in enumerate(outs, 1):
        torch.testing.assert_close(out.cpu(), n * expected)


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_an_error_comes_through(bad):
    def work(number):
        if number == bad:
            raise MemoryError("full")

    with pytest.raises(MemoryError, match="full"):
        at_once(_device(), *(lambda number=number: work(number) for number in range(3)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("bad", [0, 1, 2])
def test_an_error_comes_through_a_capture_too(bad):
    def work(number):
        if number == bad:
            raise MemoryError("full")

    stream, nothing = torch.cuda.Stream(), lambda: None
    with torch.cuda.stream(stream):
        at_once(_device(), nothing, nothing, nothing)
    with pytest.raises(MemoryError, match="full"), torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream):
        at_once(_device(), *(lambda number=number: work(number) for number in range(3)))
