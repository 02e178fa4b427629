"""Proves that a kept 4-bit base is the base to the bit, follows its model's files, and is only ever a convenience."""

import os
import resource
import shutil
import signal
import threading

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tunesmith.base import quantised
from tunesmith.base.catalog import resolve
from tunesmith.base.load import choose_compute, load_model
from tunesmith.recipe import Recipe


@pytest.fixture
def folder(tiny_model_folder, tmp_path, monkeypatch):
    """A model of one's own, with an empty cache and no model too small to keep."""
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(quantised, "LEAST_BYTES", 0)
    return shutil.copytree(tiny_model_folder, tmp_path / "model")


def _load(folder, **settings):
    recipe = Recipe.of({"model_name_or_path": str(folder), "device": "cpu", **settings})
    compute = choose_compute(recipe)
    model = load_model(resolve(str(folder)), recipe, compute)
    copy = quantised.copy_of(resolve(str(folder)), recipe, compute.dtype, "cpu")
    _wait_for_copies()
    return model, copy


def _wait_for_copies():
    for thread in threading.enumerate():
        if thread.name == "keep the 4-bit base":
            thread.join()


def _same(one, other):
    mine, its = one.state_dict(), other.state_dict()
    assert mine.keys() == its.keys()
    return all(torch.equal(mine[name], its[name]) for name in mine)


def test_the_second_load_takes_the_copy_and_gives_the_same_bits(folder, monkeypatch):
    first, copy = _load(folder)
    assert {file.name for file in copy.iterdir()} >= {"config.json", "model.safetensors"}
    monkeypatch.setattr("tunesmith.base.load.store", lambda *args: pytest.fail("it was quantised again"))
    second, _ = _load(folder)
    assert _same(first, second)
    ids = torch.arange(3, 9)[None]
    assert torch.equal(first(input_ids=ids).logits, second(input_ids=ids).logits)


def test_another_way_of_quantising_and_another_file_have_copies_of_their_own(folder):
    _, copy = _load(folder)
    _, single = _load(folder, bnb_4bit_use_double_quant=False)
    weights = next(folder.glob("*.safetensors"))
    os.utime(weights, (1, 1))
    _, later = _load(folder)
    assert len({copy, single, later}) == 3
    assert all(each.is_dir() for each in (copy, single, later))


@pytest.mark.parametrize("damage", ["truncated", "missing", "of nothing"])
def test_a_damaged_copy_is_made_again(folder, damage):
    first, copy = _load(folder)
    weights = copy / "model.safetensors"
    if damage == "missing":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:1000] if damage == "truncated" else b"")
    second, _ = _load(folder)
    assert _same(first, second)
    assert weights.stat().st_size > 1000


def test_nothing_is_kept_if_so_asked_or_if_the_weights_are_not_in_4_bits(folder, tmp_path):
    assert _load(folder, cache_base=False)[1] is None
    assert _load(folder, load_in_4bit=False)[1] is None
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_biases_that_are_trained_later_are_kept_as_they_were(folder, tmp_path):
    config = AutoConfig.from_pretrained(folder, attention_bias=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    recipe = Recipe.of({"model_name_or_path": str(folder), "device": "cpu"})
    started, begun = threading.Event(), quantised._on_host
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantised, "_on_host", lambda tensors: (started.wait(), begun(tensors))[1])
        model = load_model(resolve(str(folder)), recipe, choose_compute(recipe))
        with torch.no_grad():
            model.model.layers[0].self_attn.q_proj.bias.add_(7)
        started.set()
        _wait_for_copies()
    again, _ = _load(folder)
    assert float(again.model.layers[0].self_attn.q_proj.bias.abs().max()) < 1


def test_a_disk_that_ends_while_it_is_written_costs_the_copy_and_says_nothing(folder):
    limit, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limit[1]))
        _, copy = _load(folder)  # an error in the thread would be pytest's
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(copy.parent.iterdir()) == []


def test_a_full_disk_costs_the_copy_and_nothing_else(folder, monkeypatch):
    monkeypatch.setattr(quantised.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 100, 0))
    _, copy = _load(folder)
    assert not copy.exists()


def test_the_copies_used_longest_ago_make_room(tmp_path, monkeypatch):
    for age, name in enumerate(("new", "middle", "old")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(bytes(10))
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    monkeypatch.setattr(quantised, "MOST_BYTES", 25)
    quantised._make_room(tmp_path, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["middle", "new"]
