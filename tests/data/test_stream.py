"""Proves that a stream trains on every row once an epoch, tokenises no further ahead than a shard, and goes on where it was."""

import json
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.cache import Cache
from tunesmith.data.dataset import prepare
from tunesmith.data.loader import Loader
from tunesmith.data.stream import Stream
from tunesmith.errors import DataError, RecipeError, RowError
from tunesmith.recipe import Recipe
from tunesmith.training.loop import _windows


def _write(path, count, bad=()):
    rows = [{"prompt": f"What is {n}?", "completion": "" if n in bad else f"It is {n}."} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def _small(monkeypatch, shard, characters=2**27):
    monkeypatch.setattr(Stream.__init__, "__defaults__", (shard, characters))


def _loader(data, batch=2):
    return Loader(data.rows, batch, seed=3, more=data.shards.since)


def _rows(windows):
    return [where for window in windows for pack in window.packs for where in pack.where]


def _prepared(path, renderer, cache=None, **more):
    recipe = Recipe.of({"dataset_name": path, "streaming": True, "max_length": 40, "max_steps": 5, **more})
    return prepare(recipe, renderer, 512, cache=cache)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 23), st.integers(1, 9), st.integers(1, 3), st.booleans())
def test_every_row_is_trained_on_once_an_epoch(tmp_path_factory, renderer_of, count, shard, batch, cached):
    with pytest.MonkeyPatch.context() as patch:
        _small(patch, shard)
        folder = tmp_path_factory.mktemp("rows")
        cache = Cache(folder / "cache") if cached else None
        path = _write(folder / "rows.jsonl", count)
        data = _prepared(path, renderer_of("chatml"), cache)
        for epoch in range(2):
            parts = _loader(data, batch).shards()
            seen = [row for _, part in parts for window in part.epoch(epoch) for pack in window for row in pack.where]
            assert sorted(seen) == sorted(f"{path} line {n + 1}" for n in range(count))


def test_a_stream_trains_on_the_tokens_of_the_same_rows_read_at_once(tmp_path, renderer_of, monkeypatch):
    _small(monkeypatch, 5)
    path = _write(tmp_path / "rows.jsonl", 17)
    data = _prepared(path, renderer_of("chatml"))
    whole = prepare(Recipe.of({"dataset_name": path, "max_length": 40}), renderer_of("chatml"), 512)
    streamed = [example for rows in data.shards.since(0) for row in rows for example in row]
    assert sorted(map(repr, streamed)) == sorted(repr(example) for row in whole.rows for example in row)


@pytest.mark.parametrize("cached", [True, False])
def test_going_on_from_any_update_reads_what_was_left(tmp_path, renderer_of, monkeypatch, cached):
    _small(monkeypatch, 5)
    cache = Cache(tmp_path / "cache") if cached else None
    path = _write(tmp_path / "rows.jsonl", 17)
    every = list(_windows(_loader(_prepared(path, renderer_of("chatml"), cache)), 20))
    assert {window.after.shard for window in every} == {0, 1, 2, 3}
    assert {window.after.epoch for window in every} >= {0, 1}
    for number, window in enumerate(every):
        rest = list(_windows(_loader(_prepared(path, renderer_of("chatml"), cache)), 20, window.after))
        assert _rows(rest) == _rows(every[number + 1 :])
        assert [one.after for one in rest] == [one.after for one in every[number + 1 :]]


def test_no_more_than_the_next_shard_is_tokenised_ahead(tmp_path, renderer_of, monkeypatch):
    _small(monkeypatch, 4)
    asked, done = [], threading.Event()
    read = Stream._read

    def noted(self, number, watch):
        asked.append(number)
        if number == 1:
            done.set()
        return read(self, number, watch)

    monkeypatch.setattr(Stream, "_read", noted)
    data = _prepared(_write(tmp_path / "rows.jsonl", 100), renderer_of("chatml"))
    assert asked == [0]
    shards = data.shards.since(0)
    next(shards)
    assert asked == [0]
    next(shards)
    assert done.wait(10)
    shards.close()
    assert asked in ([0, 1], [0, 1, 2])


def test_rows_held_out_are_of_the_first_shard_and_never_trained_on(tmp_path, renderer_of, monkeypatch):
    _small(monkeypatch, 8)
    data = _prepared(_write(tmp_path / "rows.jsonl", 20), renderer_of("chatml"), val_size=3)
    held = {question.where for question in data.questions}
    assert len(held) == len(data.held_out) == 3
    for epoch in range(2):
        trained = {row for _, part in _loader(data).shards() for w in part.epoch(epoch) for pack in w for row in pack.where}
        assert len(trained) == 17
        assert not trained & held


def test_bad_rows_and_cut_rows_of_every_shard_are_counted(tmp_path, renderer_of, monkeypatch):
    _small(monkeypatch, 5)
    cache = Cache(tmp_path / "cache")
    path = _write(tmp_path / "rows.jsonl", 20, bad={2, 9, 10, 19})
    text = "a " * 60
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps({"prompt": "x", "completion": text}) + "\n")
    for _ in range(2):  # rendered, and from the cache
        data = _prepared(path, renderer_of("chatml"), cache, on_bad_row="skip", max_length=40)
        assert data.facts.cut_rows == 0
        list(_loader(data).shards())
        assert data.so_far.bad.count == 4
        assert data.so_far.bad.reasons[3].startswith(f"{path} line 20 ")
        assert data.so_far.rows == 17
        assert data.so_far.cut_rows == 1
        assert data.so_far.lost_tokens > 0


def test_a_bad_row_ends_the_run_where_it_is_reached(tmp_path, renderer_of, monkeypatch):
    _small(monkeypatch, 5)
    path = _write(tmp_path / "rows.jsonl", 20, bad={12})
    data = _prepared(path, renderer_of("chatml"))
    shards = data.shards.since(0)
    next(shards)
    next(shards)
    with pytest.raises(RowError, match="line 13"):
        next(shards)
    with pytest.raises(DataError, match="line 13"):
        _prepared(path, renderer_of("chatml"), max_rows=None, streaming=False)


def test_few_long_rows_are_a_shard(tmp_path, renderer_of, monkeypatch):
    _small(monkeypatch, 100, characters=60)
    data = _prepared(_write(tmp_path / "rows.jsonl", 20), renderer_of("chatml"))
    sizes = [len(rows.examples) for rows in data.shards.since(0)]
    assert sum(sizes) == 20
    assert max(sizes) <= 4


def test_a_change_anywhere_in_the_file_changes_the_fingerprint(tmp_path, renderer_of, monkeypatch):
    _small(monkeypatch, 5)
    path = _write(tmp_path / "rows.jsonl", 20)
    first = _prepared(path, renderer_of("chatml")).facts.sha256
    text = (tmp_path / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(text.replace("It is 19.", "It is 18."))
    assert _prepared(path, renderer_of("chatml")).facts.sha256 != first


def test_a_stream_needs_a_number_of_updates_and_says_how_many_its_first_rows_make(tmp_path, tiny_model_folder):
    from tunesmith.job import prepare_run

    path = _write(tmp_path / "rows.jsonl", 20)
    recipe = {"model_name_or_path": str(tiny_model_folder), "dataset_name": path, "streaming": True, "chat_template": "chatml"}
    with pytest.raises(RecipeError, match=r"20 rows make --max-steps \d+"):
        prepare_run(Recipe.of({**recipe, "output_dir": str(tmp_path / "run")}))


def test_a_stream_is_of_one_data_set():
    with pytest.raises(RecipeError, match="streaming"):
        Recipe.of({"datasets": ["a.jsonl", "b.jsonl"], "streaming": True, "max_steps": 1})


def test_rows_that_are_not_streamed_are_one_shard():
    loader = Loader([[]], 1)
    assert list(loader.shards()) == [(0, loader)]
