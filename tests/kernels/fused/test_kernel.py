"""Proves that kernels may be launched while other threads compile and load them."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

kernel = pytest.importorskip("tunesmith.kernels.fused.kernel", reason="needs triton")
triton, tl = pytest.importorskip("triton"), pytest.importorskip("triton.language")


@kernel.kernel()
def _write(out, VALUE: tl.constexpr, COUNT: tl.constexpr):
    tl.store(out + tl.arange(0, COUNT), VALUE)


def test_threads_that_compile_do_not_disturb_one_that_launches(device):
    """Each value is a kernel of its own, new to everyone: some threads compile it, some launch it."""

    def launch(value):
        out = torch.zeros(16, device=device)
        _write[(1,)](out, value, 16)
        return out.tolist()

    def compile_it(value):
        with kernel.compile_only():
            launch(value)

    with ThreadPoolExecutor(8) as pool:
        pending = [(v, work, pool.submit(work, v)) for v in range(1, 9) for work in (compile_it, launch, compile_it, launch)]
        made = [(value, future.result()) for value, work, future in pending if work is launch]
    assert made == [(value, [value] * 16) for value in range(1, 9) for _ in range(2)]


def test_what_is_only_compiled_is_not_launched(device):
    if device == "cpu":
        pytest.skip("the interpreter compiles nothing")
    out = torch.zeros(16, device=device)
    with kernel.compile_only():
        _write[(1,)](out, 9, 16)
    assert out.tolist() == [0.0] * 16
    _write[(1,)](out, 9, 16)
    assert out.tolist() == [9.0] * 16
