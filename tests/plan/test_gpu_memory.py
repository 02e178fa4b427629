"""Proves that the prediction for a GPU counts what it says it counts; how near it is to a real GPU: benchmarks/planner.py."""

import dataclasses
import itertools

import pytest
from transformers import LlamaConfig, Phi3Config

from tunesmith.plan.gpu_memory import predict_gpu_memory
from tunesmith.plan.memory import footprint, shape_of_config
from tunesmith.plan.way import Way, ways
from tunesmith.recipe import Recipe

PHI3 = shape_of_config(
    Phi3Config(
        vocab_size=32064, hidden_size=3072, intermediate_size=8192, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=32, pad_token_id=32000,
    )
)  # fmt: skip
RECIPE = Recipe.of({"per_device_train_batch_size": 16})


def predicted(way, tokens=1008, recipe=RECIPE, shape=PHI3):
    return predict_gpu_memory(shape, recipe, tokens, tokens, 2, way)


def test_widths_come_from_the_config():
    assert (PHI3.query_width, PHI3.key_width, PHI3.inner, PHI3.rotary_width) == (3072, 3072, 8192, 96)


@pytest.mark.parametrize(("tied", "elements"), [(True, 0), (False, 50 * 16)])
def test_the_embedding_counts_by_itself_where_the_head_has_another_matrix(tied, elements):
    config = Phi3Config(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        pad_token_id=0, tie_word_embeddings=tied,
    )  # fmt: skip
    assert shape_of_config(config).embedding == elements


def test_kept_weights_are_all_linear_weights_in_the_compute_type_and_room_for_the_adapter():
    outputs = sum(out for _, _, out in PHI3.linears)
    assert predicted(Way(True)).kept == 2 * (PHI3.linear_weights + 16 * outputs)
    assert predicted(Way(False)).kept == 0


def test_stored_weights_are_the_footprint_and_a_little():
    stored = predicted(Way(False)).stored
    assert footprint(PHI3, 4, 2) < stored < 1.06 * footprint(PHI3, 4, 2)


def test_a_streamed_base_leaves_two_layers_on_the_gpu_and_no_embedding():
    there, away = predicted(Way(False, True)).stored, predicted(Way(False, True, stream=True)).stored
    layer, embedding = PHI3.linear_weights // 2 // PHI3.layers, 2 * PHI3.vocab * PHI3.hidden
    assert there - away == pytest.approx(30 * layer + embedding, rel=0.06)


def test_an_embedding_that_is_the_head_stays():
    tied = dataclasses.replace(PHI3, embedding=0)
    streamed = Way(False, True, stream=True)
    saved = predicted(streamed, shape=tied).stored - predicted(streamed).stored
    assert saved == pytest.approx(2 * PHI3.vocab * PHI3.hidden, rel=0.02)


@pytest.mark.parametrize(("settings", "left"), [({}, 5 * 1024), ({"use_dora": True}, None)], ids=["lean", "peft's own"])
def test_gradients_that_wait_to_be_added_count_where_activations_are_away(settings, left):
    """Of separate q, k and v and gate and up, the A; all, where peft's own layers compute."""
    config = LlamaConfig(
        vocab_size=5000, hidden_size=1024, intermediate_size=2048, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=2
    )
    shape = shape_of_config(config)

    def taken(rank):
        asked = RECIPE.model_copy(update={"lora_r": rank, **settings})
        return predicted(Way(False, True, host_activations=True), recipe=asked, shape=shape).activations

    saved = 1008 * 2 * 7 * 64  # the rank side of the one layer that is recomputed
    waiting = 4 * 64 * (4 * left if left else shape.trainable(1))
    assert taken(128) - taken(64) == pytest.approx(saved + waiting, rel=0.02)


def test_each_saving_saves():
    ladder = [
        Way(True), Way(False), Way(False, True), Way(False, True, True), Way(False, True, True, stream=True),
    ]  # fmt: skip
    totals = [predicted(way).total for way in ladder]
    assert all(a > b for a, b in itertools.pairwise(totals))


def test_memory_grows_with_tokens_and_rank_and_shrinks_with_an_8_bit_optimizer():
    for way in ways(RECIPE, True):
        assert predicted(way, 4096).total > predicted(way, 1008).total
    wide, small = RECIPE.model_copy(update={"lora_r": 64}), RECIPE.model_copy(update={"optim": "adamw_8bit"})
    assert predicted(Way(True), recipe=wide).adapter == 8 * predicted(Way(True)).adapter
    assert predicted(Way(True)).adapter - predicted(Way(True), recipe=small).adapter == 6 * PHI3.trainable(8)


def test_without_recomputation_activations_are_those_of_every_layer():
    half = dataclasses.replace(PHI3, layers=16, linears=PHI3.linears[:64])
    whole = predicted(Way(True)).activations - predicted(Way(True), shape=half).activations
    recomputed = predicted(Way(True, True)).activations - predicted(Way(True, True), shape=half).activations
    assert whole > 10 * recomputed > 0
