"""Proves that prepared rows are found again when nothing changed, made again when anything did, and never believed when damaged."""

import ast
import json
import os
from pathlib import Path

import numpy as np
import pytest

from tunesmith.data import tokenise as tokenise_module
from tunesmith.data.cache import Cache, code, contents_of, key_of, local_files
from tunesmith.data.dataset import prepare
from tunesmith.data.examples import Builder
from tunesmith.data.render import IGNORE, Example
from tunesmith.data.tokenise import tokenise
from tunesmith.errors import DataError
from tunesmith.recipe import Recipe


def _examples(count=5, length=6):
    builder = Builder()
    for n in range(count):
        ids = list(range(n, n + length))
        builder.add(Example(ids, [IGNORE, *ids[1:]], f"größe.jsonl line {n + 1}"), bytes([n] * 16), n / 2 + 0.5)
    return builder.examples()


def _write(path, rows=4, answer="It is {n}."):
    rows = [{"prompt": f"What is {n}?", "completion": answer.format(n=n)} for n in range(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


@pytest.fixture
def made(tmp_path, cache, renderer_of):
    """Tokenises a file with settings, and says whether that was from the cache."""
    path = tmp_path / "rows.jsonl"
    _write(path)

    def make(family="chatml", **settings):
        seen = []
        recipe = Recipe.of({"dataset_name": str(path), **settings})
        found = tokenise(recipe, renderer_of(family, recipe.assistant_only_loss), seen.append, cache)
        return found, not seen

    make.path = path
    return make


def test_what_was_saved_is_found_again(cache):
    assert cache.load("a") is None
    kept = _examples()
    cache.save("a", kept, {"columns": "x", "list": [1, None, "ü"]})
    found, facts = cache.load("a")
    assert list(found) == list(kept)
    assert np.array_equal(found.digests, kept.digests)
    assert np.array_equal(found.weights, kept.weights)
    assert facts == {"columns": "x", "list": [1, None, "ü"]}
    assert cache.load("b") is None


def test_nothing_at_all_can_be_saved(cache):
    cache.save("a", Builder().examples(), {})
    assert len(cache.load("a")[0]) == 0


@pytest.mark.parametrize("place", [0, 7, 8, 40, 400, -1, -30])
def test_a_flipped_bit_is_noticed(cache, place):
    cache.save("a", _examples(40), {})
    (path,) = cache.folder.iterdir()
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)
    found = cache.load("a")
    assert found is None or list(found[0]) == list(_examples(40)), "only what changes nothing may pass"


@pytest.mark.parametrize("content", [b"", b"{}", b"\x08\0\0\0\0\0\0\0{}      ", b"\xff" * 64])
def test_a_file_that_is_not_ours_is_as_if_not_there(cache, content):
    cache.folder.mkdir()
    (cache.folder / "a.safetensors").write_bytes(content)
    assert cache.load("a") is None
    cache.save("a", _examples(), {})
    assert cache.load("a") is not None


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_file_cut_short_is_as_if_not_there(cache, share):
    cache.save("a", _examples(50), {})
    (path,) = cache.folder.iterdir()
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert cache.load("a") is None


def test_those_not_used_for_longest_go_when_there_are_too_many(cache):
    cache.save("a", _examples(), {})
    size = sum(path.stat().st_size for path in cache.folder.iterdir())
    small = Cache(cache.folder, 3 * size + size // 2)
    for number, key in enumerate("bcd"):
        small.save(key, _examples(), {})
        for older, name in enumerate("abcd"[: number + 2]):
            path = cache.folder / f"{name}.safetensors"
            if path.exists():
                os.utime(path, (1000 + older, 1000 + older))
    assert sorted(path.stem for path in cache.folder.iterdir()) == ["b", "c", "d"]
    assert sum(path.stat().st_size for path in cache.folder.iterdir()) <= small.limit


def test_what_is_larger_than_the_limit_is_not_kept(cache):
    Cache(cache.folder, 10).save("a", _examples(), {})
    assert cache.load("a") is None


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    broken = Cache(tmp_path / "file")
    broken.save("a", _examples(), {})
    assert broken.load("a") is None


def test_what_killed_runs_left_half_written_goes_and_what_others_write_stays(cache):
    cache.folder.mkdir()
    for name, age in ((".tmp-old", 1), (".tmp-new", None)):
        (cache.folder / name).write_bytes(b"half")
        if age:
            os.utime(cache.folder / name, (age, age))
    cache.save("a", _examples(), {})
    assert sorted(path.name for path in cache.folder.iterdir()) == [".tmp-new", "a.safetensors"]


def test_a_second_start_reads_no_row(made):
    first, cached = made()
    assert not cached
    second, cached = made()
    assert cached
    assert list(second.examples) == list(first.examples)
    assert (second.columns, second.read_as, second.bad, second.notes) == (first.columns, first.read_as, first.bad, first.notes)
    assert second.weights.tolist() == first.weights.tolist()


def test_one_changed_row_is_noticed(made):
    made()
    stat = made.path.stat()
    text = made.path.read_text()
    made.path.write_text(text.replace("It is 2.", "It is 3."))
    os.utime(made.path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size, same time
    found, cached = made()
    assert not cached
    assert len({tuple(example.input_ids) for example in found.examples}) == 4


@pytest.mark.parametrize(
    "settings",
    [{"assistant_only_loss": False}, {"max_rows": 3}, {"prompt": "completion", "completion": "prompt"}, {"family": "zephyr"}],
)
def test_settings_that_change_examples_are_noticed(made, settings):
    made()
    assert not made(**settings)[1]
    assert made(**settings)[1]
    assert made()[1]


@pytest.mark.parametrize(
    "settings", [{"max_length": 30}, {"packing": "wrapped"}, {"val_size": 1}, {"shared_prefix": False}, {"lora_r": 4}]
)
def test_settings_that_change_no_example_find_them_again(made, settings):
    made()
    assert made(**settings)[1]


def test_a_run_from_the_cache_is_the_run_from_the_file(made, cache, renderer_of):
    recipe = Recipe.of({"dataset_name": str(made.path), "val_size": 1})
    runs = [prepare(recipe, renderer_of("chatml"), 512, cache=cache) for _ in range(2)]
    assert list(runs[0].rows) == list(runs[1].rows)
    assert runs[0].facts == runs[1].facts
    assert runs[0].held_out == runs[1].held_out
    assert runs[0].questions == runs[1].questions


def test_bad_rows_left_out_are_counted_the_second_time_too(made):
    made.path.write_text(made.path.read_text() + '{"prompt": "x", "completion": ""}\n')
    first, _ = made(on_bad_row="skip")
    second, cached = made(on_bad_row="skip")
    assert cached
    assert second.bad == first.bad
    assert second.bad.count == 1
    with pytest.raises(DataError):
        made()


def test_a_files_bytes_and_names_decide_the_key_and_a_hub_name_has_none(tmp_path, renderer_of):
    tokenizer = renderer_of("chatml").tokenizer
    for name in ("a.jsonl", "b.jsonl"):
        _write(tmp_path / name)
    key = lambda *names: key_of(contents_of([str(tmp_path / name) for name in names]), {}, tokenizer)  # noqa: E731
    keys = [key("a.jsonl"), key("b.jsonl"), key("a.jsonl", "b.jsonl"), key("b.jsonl", "a.jsonl")]
    assert len(set(keys)) == 4
    assert contents_of(["someone/rows"]) is None
    assert contents_of([str(tmp_path / "a.jsonl"), "someone/rows"]) is None
    assert contents_of(["yoda"]) is not None
    assert local_files(str(tmp_path)) == local_files(str(tmp_path / "*.jsonl")) == [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]


def test_the_code_in_the_key_is_all_that_tokenising_imports_of_this_room():
    room = Path(tokenise_module.__file__).parent
    found, ahead = set(), ["tokenise"]
    while ahead:
        if (name := ahead.pop()) not in found:
            found.add(name)
            for node in ast.walk(ast.parse((room / f"{name}.py").read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and str(node.module).startswith("tunesmith.data"):
                    ahead += [str(node.module).split(".")[2]] if str(node.module).count(".") > 1 else [n.name for n in node.names]
                assert not (isinstance(node, ast.Import) and any(n.name.startswith("tunesmith.data") for n in node.names))
    assert {path.stem for path in code()} == found
    assert found >= {"text_files", "columns", "render", "template", "word_cache"}
    assert not {"preview", "packing", "loader"} & found
