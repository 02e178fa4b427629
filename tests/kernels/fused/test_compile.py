"""Proves that kernels compile for GPUs that need not be here, and fit into their memory."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest

fused = pytest.importorskip("tunesmith.kernels.fused.kernel", reason="needs triton")

T4, A100, RTX30, H100, B200 = (75, 64 * 1024), (80, 163 * 1024), (86, 99 * 1024), (90, 227 * 1024), (100, 227 * 1024)


def _compiled(gpu, dtype, size, *every):
    """Names of kernels, and the most shared memory that one of them takes."""
    script = Path(__file__).with_name("compile_for.py")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(script), *map(str, gpu), dtype, str(size), *every]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    *names, most = done.stdout.split()
    return set(names), int(most)


@pytest.mark.parametrize(
    ("gpu", "dtype", "size"),
    [
        (T4, "float16", 128), (T4, "float32", 128), (T4, "float16", 256), (RTX30, "bfloat16", 128), (A100, "bfloat16", 256),
        (H100, "bfloat16", 64), (H100, "bfloat16", 128), (H100, "bfloat16", 256),
        (B200, "bfloat16", 256),
    ],
    ids=["T4, fp16", "T4, fp32", "T4, fp16, Gemma", "RTX 30", "A100, Gemma", "H100, 64", "H100, 128", "H100, Gemma", "B200, Gemma"],
)  # fmt: skip
def test_attention_fits_the_shared_memory_of_a_gpu(gpu, dtype, size):
    assert 0 < _compiled(gpu, dtype, size)[1] <= gpu[1]


@pytest.mark.parametrize(("gpu", "dtype"), [(T4, "float16"), (H100, "bfloat16")], ids=["T4", "H100"])
def test_every_kernel_compiles(gpu, dtype):
    names, most = _compiled(gpu, dtype, 96, "every")
    package = import_module("tunesmith.kernels.fused")
    modules = [import_module(f"{package.__name__}.{module.name}") for module in iter_modules(package.__path__)]
    kernels = {value.function.fn for module in modules for value in vars(module).values() if isinstance(value, fused.Kernel)}
    kernels = {f"{function.__module__.rpartition('.')[2]}.{function.__name__}" for function in kernels}
    assert len(kernels) > 12
    assert names == kernels
    assert most <= gpu[1]
