"""Runs that must agree, driven through the real training loop: how a run is computed does not change what it learns."""

import json

import pytest

import tunesmith as ts

WORDS = ("wind", "camp", "bridge", "table", "night", "dark", "cold", "kind")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = []
    for i, a in enumerate(WORDS):
        for j, b in enumerate(WORDS[: 2 + i % 4]):
            answer = " ".join([b] * (1 + (i + j) % 5)) + f", the {a} is"
            rows.append({"prompt": f"the {a} is {b}" + " indeed" * (j % 3), "completion": answer})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def losses(tiny_model_folder, data, tmp_path):
    def run(name, **settings):
        given = {
            "num_train_epochs": 2, "learning_rate": 5e-3, "lora_dropout": 0.0, "per_device_train_batch_size": 8, "val_size": 4,
            **settings,
        }  # fmt: skip
        done = ts.train(str(tiny_model_folder), str(data), output_dir=str(tmp_path / name), **given)
        return [(m["loss"], m["grad_norm"], m["eval_loss"]) for m in done.metrics]

    return run


def agree(a, b, tolerance=1e-6):
    assert len(a) == len(b)
    gaps = [x[0] - y[0] for x, y in zip(a, b)]
    assert max(map(abs, gaps)) <= tolerance
    assert abs(sum(gaps)) / len(gaps) <= tolerance / 3, "a one-sided drift"
    assert max(abs(x[1] - y[1]) for x, y in zip(a, b)) <= 10 * tolerance
    assert abs(a[-1][2] - b[-1][2]) <= tolerance


def test_sharing_a_prefix_changes_nothing(losses):
    agree(losses("shared"), losses("unshared", shared_prefix=False))


def test_micro_batches_of_a_window_change_nothing(losses):
    agree(
        losses("16x1", per_device_train_batch_size=16), losses("4x4", per_device_train_batch_size=4, gradient_accumulation_steps=4)
    )


def test_recomputing_activations_changes_nothing(losses):
    agree(losses("kept"), losses("recomputed", gradient_checkpointing=True))


def test_recomputing_activations_draws_the_same_dropout(losses):
    agree(losses("kept", lora_dropout=0.3), losses("recomputed", gradient_checkpointing=True, lora_dropout=0.3))


def test_dequantising_at_each_use_changes_nothing(losses):
    agree(losses("kept", dequantize="always"), losses("each use", dequantize="never"))


def test_a_seed_decides_everything(losses):
    first, again = losses("one", lora_dropout=0.1), losses("two", lora_dropout=0.1)
    other = losses("three", lora_dropout=0.1, seed=7)
    assert first == again
    assert first != other


def test_evaluation_leaves_training_as_it_is(losses):
    often, seldom = losses("often", lora_dropout=0.2, eval_steps=1), losses("seldom", lora_dropout=0.2)
    assert [x[:2] for x in often] == [x[:2] for x in seldom]
