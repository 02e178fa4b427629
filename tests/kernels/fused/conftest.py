"""These kernels run on the GPU where there is one, and in Triton's interpreter on a CPU. Without triton they are skipped."""

import os
import sys

import pytest
import torch

ON_GPU = torch.cuda.is_available()

if not ON_GPU and "triton" not in sys.modules:
    os.environ["TRITON_INTERPRET"] = "1"  # read once, when triton is imported


@pytest.fixture(autouse=True)
def _interpreter_is_on():
    if not ON_GPU and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("no GPU, and triton was imported before its interpreter was switched on: set TRITON_INTERPRET=1")


@pytest.fixture(params=["cuda" if ON_GPU else "cpu"])
def device(request) -> str:
    return request.param


@pytest.fixture
def agree():
    """Compares with the plain twin: up to the order of a sum, and one unit in the last place of a 16-bit type (the
    interpreter cuts bf16 off where a GPU rounds to nearest)."""

    def compare(actual: torch.Tensor, expected: torch.Tensor) -> None:
        last_place = {torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float32: 1e-5}[actual.dtype]
        torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=last_place, atol=5e-5, check_device=False)

    return compare
