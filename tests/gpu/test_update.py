"""On a GPU every way to make an update is the same update: captured or eager, kept or dequantised, recomputed, on the host,
streamed, with prefixes shared, in fp16; and dropout differs from step to step although the step is replayed."""

import pytest
import torch
from tests.training.updates import run

from tunesmith.training.graph import GraphUpdate
from tunesmith.training.update import EagerUpdate

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def plain(tiny_model_folder):
    return run(tiny_model_folder, EagerUpdate)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dequantize": "never"},
        {"dequantize": "never", "gradient_checkpointing": True},
        {"dequantize": "never", "gradient_checkpointing": True, "activation_offloading": True},
        {"dequantize": "never", "gradient_checkpointing": True, "offload_base": "always"},
        {"dequantize": "never", "gradient_checkpointing": True, "activation_offloading": True, "offload_base": "always"},
    ],
    ids=lambda settings: "+".join(settings) or "kept",
)
def test_every_way_makes_the_same_updates(tiny_model_folder, plain, settings):
    made, adapter = run(tiny_model_folder, **settings)
    torch.testing.assert_close(made, plain[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(adapter, plain[1], rtol=1e-2, atol=1e-4)
    assert plain[0][-1, 0] < 0.9 * plain[0][0, 0]


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("offload_base", ["never", "always"])
def test_activations_that_leave_whatever_their_size_change_nothing(tiny_model_folder, monkeypatch, offload_base, accumulation):
    lean = {"dequantize": "never", "gradient_checkpointing": True, "offload_base": offload_base}
    lean |= {"batch": 4 // accumulation, "accumulation": accumulation}
    there = run(tiny_model_folder, **lean)
    monkeypatch.setattr("tunesmith.training.offload.MIN_BYTES", 1)
    away = run(tiny_model_folder, activation_offloading=True, **lean)
    torch.testing.assert_close(away[0], there[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(away[1], there[1], rtol=1e-3, atol=1e-5)


def test_a_gradient_begun_before_the_last_result_is_read_changes_nothing(tiny_model_folder):
    for mine, plain in zip(run(tiny_model_folder, ahead=True), run(tiny_model_folder)):
        assert torch.equal(mine, plain)


def test_accumulation_makes_the_same_updates(tiny_model_folder):
    whole = run(tiny_model_folder, lora_dropout=0.0)
    split = run(tiny_model_folder, batch=2, accumulation=2, lora_dropout=0.0)
    torch.testing.assert_close(split[0], whole[0], rtol=1e-4, atol=1e-5)


def test_documents_of_many_lengths_are_captured_too(tiny_model_folder):
    lengths = (24, 9, 17, 5)
    eager, captured = (run(tiny_model_folder, way, lengths=lengths)[0] for way in (EagerUpdate, GraphUpdate))
    torch.testing.assert_close(captured, eager, rtol=1e-4, atol=1e-5)


def test_dropout_differs_from_replay_to_replay(tiny_model_folder):
    norms = run(tiny_model_folder, rate=0.0)[0][2:, 1]  # B is zero: the loss knows no dropout yet, its gradient does
    assert len({round(float(norm), 5) for norm in norms}) > 3


def test_a_loss_that_is_not_finite_makes_no_update(tiny_model_folder):
    from tunesmith.errors import TrainingError

    with pytest.raises(TrainingError, match="at update"):
        run(tiny_model_folder, rate=1e30)


class _LateStates(GraphUpdate):
    """Its 8-bit optimizer's states are filled late, over memory full of NaN."""

    def _start(self, step):
        super()._start(step)
        fill = self.optimizer.init_state

        def late(*arguments):
            for size in (1 << 8, 1 << 12, 1 << 16, 1 << 20):
                torch.full((size,), float("nan"), device=self.device)
            torch.cuda._sleep(1 << 28)
            fill(*arguments)

        self.optimizer.init_state = late


@pytest.mark.parametrize("optim", ["adamw_8bit", "paged_adamw_8bit"])
def test_an_8_bit_optimizer_waits_for_its_states(tiny_model_folder, optim):
    late, eager = (run(tiny_model_folder, way, optim=optim)[0] for way in (_LateStates, EagerUpdate))
    torch.testing.assert_close(late, eager, rtol=1e-2, atol=1e-3)


def test_fp16_makes_nearly_the_updates_of_fp32(tiny_model_folder):
    half, eager = (run(tiny_model_folder, way, dtype="float16") for way in (GraphUpdate, EagerUpdate))
    whole = run(tiny_model_folder)
    torch.testing.assert_close(half[0], eager[0], rtol=1e-2, atol=5e-3)
    torch.testing.assert_close(half[0][:, 0], whole[0][:, 0], rtol=1e-2, atol=1e-2)


def test_a_gradient_that_leaves_the_range_of_fp16_is_made_again(tiny_model_folder):
    class Loud(GraphUpdate):
        def __init__(self, *settings):
            super().__init__(*settings)
            self.scale.value *= 2.0**20

    settings = {"dtype": "float16", "rate": 0.0}
    assert torch.equal(run(tiny_model_folder, Loud, **settings)[0], run(tiny_model_folder, **settings)[0])


def test_shared_prefixes_are_captured_too(tiny_model_folder):
    settings = {"lengths": (24, 21, 17, 19), "prefix": 12, "lora_dropout": 0.0}
    captured = run(tiny_model_folder, **settings)
    eager = run(tiny_model_folder, EagerUpdate, **settings)
    alone = run(tiny_model_folder, shared_prefix=False, **settings)
    for other in (eager, alone):
        torch.testing.assert_close(captured[0], other[0], rtol=1e-4, atol=1e-5)


def test_what_cannot_be_captured_runs_eagerly_and_says_so(tiny_model_folder):
    class Stubborn(GraphUpdate):
        """Its passes look at a number on the way."""

        def _backward(self, pack):
            super()._backward(pack)
            float(self.sums[0])

    stubborn, eager = run(tiny_model_folder, Stubborn, eager=True), run(tiny_model_folder, EagerUpdate)
    torch.testing.assert_close(stubborn[0], eager[0], rtol=1e-4, atol=1e-5)
    torch.randn(1, device="cuda")  # torch's generator draws again
