"""Proves on a GPU, family by family, that the fast path computes transformers' own loss and gradients, and that captured updates
are the eager ones."""

import pytest
import torch
from tests.invariants.families import FAMILIES, build, documents, tiny
from tests.training.updates import run

from tunesmith.base.adapter import adapter_parameters
from tunesmith.base.lean import speed_up
from tunesmith.data.packing import make_pack
from tunesmith.training.step import fast_loss, plain_loss
from tunesmith.training.update import EagerUpdate

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("shared_prefix", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_equal_the_models_own(family, shared_prefix):
    base, model = build(family, torch.float32, "cuda")
    parameters = adapter_parameters(model)
    for name, parameter in parameters.items():
        torch.manual_seed(len(name))
        parameter.data = (torch.randn(parameter.shape) * 0.2).cuda()
    rows = [[document] for document in documents()]
    expected = plain_loss(base)(make_pack(rows, shared_prefix=False).to("cuda"))
    expected.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in parameters.items()}
    model.zero_grad()

    speed_up(model, torch.float32, keep=True)
    loss = fast_loss(base)(make_pack(rows, shared_prefix=shared_prefix).to("cuda"))
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    for name, parameter in parameters.items():
        distance = torch.linalg.vector_norm(parameter.grad - gradients[name]) / torch.linalg.vector_norm(gradients[name])
        assert distance <= 1e-5, name


@pytest.mark.parametrize("family", FAMILIES)
def test_captured_updates_equal_eager_ones(family, tmp_path):
    tiny(family).save_pretrained(tmp_path)
    captured, eager = run(tmp_path, load_in_4bit=False), run(tmp_path, EagerUpdate, load_in_4bit=False)
    torch.testing.assert_close(captured[0], eager[0], rtol=1e-4, atol=1e-5)
    assert eager[0][-1, 0] < eager[0][0, 0]
