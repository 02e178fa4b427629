"""Proves that weights are quantised on one device and kept on another only while a model is loaded, and that memory that runs out
is told as that (the move itself: tests/gpu)."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import bitsandbytes as bnb
import pytest
import torch

from tunesmith.base.catalog import resolve
from tunesmith.base.load import choose_compute, load_model
from tunesmith.base.quantise import quantise_on
from tunesmith.errors import MachineError
from tunesmith.recipe import Recipe

CPU = torch.device("cpu")
PLAIN = bnb.nn.Params4bit._quantize


def _quantised(weight, **settings):
    return bnb.nn.Params4bit(weight.clone(), requires_grad=False, quant_type="nf4", **settings).to("cpu")


@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16])
@pytest.mark.parametrize("double", [True, False])
def test_weights_and_their_constants_are_what_they_are_without(double, storage):
    weight = torch.randn(48, 64)
    plain = _quantised(weight, compress_statistics=double, quant_storage=storage)
    with quantise_on(CPU):
        mine = _quantised(weight, compress_statistics=double, quant_storage=storage)
    assert torch.equal(mine.data.view(torch.uint8), plain.data.view(torch.uint8))
    states = [each.quant_state.as_dict(packed=True) for each in (mine, plain)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0].keys() | states[1].keys())


def test_two_loads_in_two_threads_leave_nothing_behind():
    begin = Barrier(2)

    def load(_):
        begin.wait()
        with quantise_on(CPU):
            return _quantised(torch.ones(64, 64)).quant_state is not None

    with ThreadPoolExecutor(2) as pool:
        for _ in range(10):
            assert all(pool.map(load, range(2)))
    assert bnb.nn.Params4bit._quantize is PLAIN


def test_memory_that_runs_out_is_told_as_that_and_not_as_damaged_weights(tiny_model_folder, monkeypatch, tmp_path):
    def full(*args, **settings):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path))
    monkeypatch.setattr(bnb.functional, "quantize_4bit", full)
    recipe = Recipe.of({"model_name_or_path": str(tiny_model_folder), "device": "cpu"})
    with pytest.raises(MachineError, match="does not fit into this machine's memory"):
        load_model(resolve(str(tiny_model_folder)), recipe, choose_compute(recipe))
    assert bnb.nn.Params4bit._quantize is PLAIN
