"""Proves that kernels may be launched while other threads compile and load them."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

kernel = pytest.importorskip("tunesmith.kernels.fused.kernel", reason="needs triton")
gated = pytest.importorskip("tunesmith.kernels.fused.gated")


def test_threads_that_compile_do_not_disturb_one_that_launches(device):
    """Each width is a kernel of its own, new to everyone: some threads compile it, some launch it."""
    widths = [16 * n + 8 for n in range(1, 9)]
    inputs = {width: torch.randn(2, 3, width, device=device) for width in widths}

    def launch(width):
        gate, up = inputs[width]
        return gated.gated_forward(gate, up, "gelu_pytorch_tanh")

    def compile_it(width):
        with kernel.compile_only():
            launch(width)

    with ThreadPoolExecutor(8) as pool:
        done = [pool.submit(work, width) for width in widths for work in (compile_it, launch, compile_it, launch)]
        results = [future.result() for future in done]
    for width, made in zip(widths, zip(results[1::4], results[3::4])):
        gate, up = inputs[width]
        for each in made:
            torch.testing.assert_close(each, torch.nn.functional.gelu(gate, approximate="tanh") * up, rtol=1e-5, atol=1e-5)


def test_what_is_only_compiled_is_not_launched(device):
    if device == "cpu":
        pytest.skip("the interpreter compiles nothing")
    gate, up = torch.ones(2, 3, 40, device=device)
    with kernel.compile_only():
        launches = torch.cuda.memory_allocated()
        gated.gated_forward(gate, up, "silu")
    assert torch.cuda.memory_allocated() == launches
