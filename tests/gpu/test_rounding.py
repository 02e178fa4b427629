"""Proves that what a young adapter adds is not rounded away in 16 bits: it is less than half a last digit of most outputs."""

import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

import torch.nn.functional as F  # noqa: E402

from tunesmith.kernels.factors import Behind, room  # noqa: E402
from tunesmith.kernels.lora_linear import lora_linear  # noqa: E402


@pytest.mark.parametrize(
    ("tokens", "inputs", "outputs"), [(1008, 576, 576), (1008, 1536, 576), (256, 576, 192), (1008, 3072, 9216)]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_change_far_below_the_last_digit_survives_on_average(tokens, inputs, outputs, dtype):
    torch.manual_seed(0)
    x = torch.randn(tokens, inputs, device="cuda").to(dtype)
    weight = (2 * torch.randn(outputs, inputs, device="cuda") / inputs**0.5).to(dtype)
    A = torch.randn(8, inputs, device="cuda") / inputs**0.5
    B = 3e-4 * torch.randn(outputs, 8, device="cuda").sign()
    wanted = 2.0 * (x.float() @ A.T) @ B.T

    def output(B):
        wide = F.pad(weight, (0, room(8)))
        Behind(room(8), 0, B.to(dtype)).write(wide[:, inputs:], slice(0, outputs))
        return lora_linear(x, lambda: [wide], None, [A], [B.requires_grad_()], 2.0)[0].detach().float()

    change = output(B) - output(torch.zeros_like(B))
    kept = float((change * wanted).sum() / (wanted * wanted).sum())
    assert kept == pytest.approx(1.0, abs=0.1)
