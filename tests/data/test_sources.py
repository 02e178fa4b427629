"""Proves that rows come out of every kind of file in order, and that whatever is wrong is said with its file and line."""

import gzip
import json

import pytest

from tunesmith.data import sources
from tunesmith.data.sources import check_name, left_out, load_rows
from tunesmith.errors import DataError

ROWS = [
    {"prompt": "Where?", "completion": "There, it is."},
    {"prompt": "Größe\n“1”", "completion": "2\ttwo"},
    {"prompt": "", "completion": "x"},
]


def _jsonl(rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _delimited(separator: str) -> str:
    def quoted(text: str) -> str:
        return '"' + text.replace('"', '""') + '"'

    return "".join(separator.join(map(quoted, line)) + "\n" for line in [ROWS[0].keys(), *(row.values() for row in ROWS)])


TEXTS = {
    "rows.jsonl": _jsonl(ROWS),
    "blank lines.jsonl": "\n" + _jsonl(ROWS).replace("\n", "\n  \n"),
    "no last newline.jsonl": _jsonl(ROWS).rstrip("\n"),
    "list.json": json.dumps(ROWS, indent=1),
    "dict with one list.json": json.dumps({"version": 2, "data": ROWS}),
    "lines under another name.json": _jsonl(ROWS),
    "rows.csv": _delimited(","),
    "rows.tsv": _delimited("\t"),
}


def _write(tmp_path, name: str, content: str | bytes) -> str:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def _refusal(name: str, **options) -> str:
    with pytest.raises(DataError) as caught:
        load_rows(name, **options)
    assert caught.value.fix
    return caught.value.what


def _fix(name: str) -> str:
    with pytest.raises(DataError) as caught:
        load_rows(name)
    return caught.value.fix


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("coding", ["plain", "bom", "gz", "gz with bom"])
def test_every_text_format_gives_the_same_rows(tmp_path, name, coding):
    data = TEXTS[name].encode("utf-8-sig" if "bom" in coding else "utf-8")
    if "gz" in coding:
        name, data = name + ".gz", gzip.compress(data)
    rows = load_rows(_write(tmp_path, name, data))
    assert [row.values for row in rows] == ROWS
    assert all(row.where.startswith(str(tmp_path / name)) for row in rows)


def test_parquet_gives_the_same_rows(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet", row_group_size=1)
    rows = load_rows(str(tmp_path / "rows.parquet"))
    assert [row.values for row in rows] == ROWS
    assert [row.where for row in rows] == [f"{tmp_path}/rows.parquet row {n}" for n in (1, 2, 3)]


def test_rows_know_the_line_they_stand_on(tmp_path):
    jsonl = load_rows(_write(tmp_path, "rows.jsonl", '{"a": 1}\n\n{"a": 2}\n'))
    assert [row.where for row in jsonl] == [f"{tmp_path}/rows.jsonl line 1", f"{tmp_path}/rows.jsonl line 3"]
    csv = load_rows(_write(tmp_path, "rows.csv", 'a,b\n1,2\n3,"4\n5"\n6,7\n'))
    assert [row.where.rpartition(" ")[2] for row in csv] == ["2", "3", "5"]


def test_one_object_alone_is_one_row(tmp_path):
    assert [row.values for row in load_rows(_write(tmp_path, "one.json", json.dumps(ROWS[0], indent=1)))] == ROWS[:1]


def test_a_folder_gives_its_data_files_by_name_and_leaves_others_alone(tmp_path):
    _write(tmp_path, "b.csv", "n\n3\n")
    _write(tmp_path, "a.jsonl.gz", gzip.compress(b'{"n": 1}\n{"n": 2}\n'))
    _write(tmp_path, "README.md", "not data")
    assert [str(row.values["n"]) for row in load_rows(str(tmp_path))] == ["1", "2", "3"]


def test_a_folder_is_read_whatever_the_case_of_its_endings_and_without_hidden_files(tmp_path):
    _write(tmp_path, "A.JSONL", '{"n": 1}\n')
    _write(tmp_path, "b.NDJSON.GZ", gzip.compress(b'{"n": 2}\n'))
    _write(tmp_path, "._A.jsonl", b"\x00\x05\x16\x07")
    assert [row.values["n"] for row in load_rows(str(tmp_path))] == [1, 2]
    assert [row.values["n"] for row in load_rows(str(tmp_path / "*"))] == [1, 2]


def test_what_a_folder_holds_besides_the_files_that_are_read_is_known(tmp_path):
    for name in ("train.jsonl", "test.jsonl", "extra.csv", "more.jsonl.zst", "README.md"):
        _write(tmp_path, name, '{"n": 1}\n')
    (tmp_path / "deeper").mkdir()
    _write(tmp_path / "deeper", "rows.json", "[]")
    assert left_out(str(tmp_path), "train") == ["deeper", "extra.csv", "more.jsonl.zst"]
    assert left_out(str(tmp_path / "train.jsonl"), "train") == []


def test_a_folder_whose_rows_stand_deeper_says_where(tmp_path):
    (tmp_path / "data").mkdir()
    _write(tmp_path / "data", "train-0.jsonl", '{"n": 1}\n')
    assert f"Name the folder {tmp_path / 'data'}." in _fix(str(tmp_path))


def test_an_arrow_file_of_a_saved_dataset_is_read_by_its_folder(tmp_path):
    from datasets import Dataset

    Dataset.from_list(ROWS).save_to_disk(str(tmp_path))
    (arrow,) = tmp_path.glob("*.arrow")
    assert f"Name its folder, {tmp_path}." in _fix(str(arrow))


def test_a_saved_dataset_folder_gives_its_rows(tmp_path):
    from datasets import Dataset

    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    assert [row.values for row in load_rows(str(tmp_path / "saved"))] == ROWS


def test_a_saved_dataset_dict_gives_the_split_that_was_asked_for(tmp_path):
    from datasets import Dataset, DatasetDict

    folder = str(tmp_path / "saved")
    DatasetDict(train=Dataset.from_list(ROWS[:2]), test=Dataset.from_list(ROWS[2:])).save_to_disk(folder)
    assert [row.values for row in load_rows(folder)] == ROWS[:2]
    assert [row.values for row in load_rows(folder, "test")] == ROWS[2:]
    refusal = _refusal(folder, split="tset")
    assert folder in refusal
    assert "test" in refusal.replace("tset", "")


def test_the_bundled_data_has_its_two_splits_and_no_other():
    assert len(load_rows("yoda", "test")) == 80
    assert set(load_rows("yoda")[0].values) == {"sentence", "translation", "translation_extra"}
    assert "validation" in _refusal("yoda", split="validation")


@pytest.mark.parametrize("name", ["rows.jsonl", "list.json", "rows.csv"])
@pytest.mark.parametrize(("limit", "count"), [(1, 1), (2, 2), (3, 3), (9, 3), (None, 3)])
def test_limit_takes_the_first_rows(tmp_path, name, limit, count):
    rows = load_rows(_write(tmp_path, name, TEXTS[name]), limit=limit)
    assert [row.values for row in rows] == ROWS[:count]


def test_rows_behind_the_limit_are_not_read(tmp_path):
    assert len(load_rows(_write(tmp_path, "rows.jsonl", '{"a": 1}\nnot json\n'), limit=1)) == 1


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": 2}\n{"a": \n', "line 3"),
        ("a.jsonl", '{"a": 1}\n\n{"a": 2},\n', "line 3"),
        ("a.jsonl", '{"a": 1}\n[1, 2]\n', "line 2 is a list"),
        ("a.jsonl", '{"a": 1}\n"text"\n', "line 2 is text"),
        ("a.jsonl", '{"a": 1}\nnull\n', "line 2 is null"),
        ("a.jsonl", '{"a": 1}\n' + "[" * 100_000 + "\n", "line 2"),
        ("a.json", '[{"a": 1},\n {"a": 2},\n {"a": }]\n', "line 3"),
        ("a.json", '{"data": [\n {"a": 1},\n {"a": }]}\n', "line 3"),
        ("a.json", '{"a": 1}\n{"a": 2}\n{"a": \n', "line 3"),
        ("a.json", '[{"a": 1}, 2]', "row 2 is a number"),
        ("a.json", '"text"', "holds text"),
        ("a.json", "[" * 100_000, "nested"),
        ("a.csv", "a,b\n1,2\n3,4,5\n", "line 3"),
        ("a.csv", "a,b\n1,2\n3\n", "line 3"),
        ("a.csv", 'a,b\n1,2\n3,"4\n', "line 3"),
        ("a.csv", 'a,b\n1,2\n3,"4"x\n', "line 3"),
        ("a.tsv", "a\tb\n1\t2\n3,4\n", "line 3"),
    ],
)
def test_what_cannot_be_read_is_refused_with_file_and_place(tmp_path, name, content, place):
    path = _write(tmp_path, name, content)
    refusal = _refusal(path)
    assert path in refusal
    assert place in refusal


@pytest.mark.parametrize("before", [2, 2000], ids=["near the start", "beyond the first buffer"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.jsonl.gz"])
def test_text_that_is_not_utf8_is_refused_with_file_and_line(tmp_path, name, before):
    lines = ["text", *["value"] * (before - 1)] if "csv" in name else ['{"text": "value"}'] * before
    data = "\n".join([*lines, '{"text": "Größe"}']).encode("latin-1")
    path = _write(tmp_path, name, gzip.compress(data) if name.endswith("gz") else data)
    refusal = _refusal(path)
    assert path in refusal
    assert "UTF-8" in refusal
    assert f"line {before + 1}" in refusal


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_file_without_rows_is_refused(tmp_path, name, content):
    path = _write(tmp_path, name, content)
    assert path in _refusal(path)


def test_a_file_of_headers_and_an_empty_list_hold_no_rows(tmp_path):
    assert "no rows" in _refusal(_write(tmp_path, "a.csv", "a,b\n"))
    assert "no rows" in _refusal(_write(tmp_path, "a.json", "[]"))


def test_a_missing_file_suggests_the_one_with_the_nearest_name(tmp_path):
    _write(tmp_path, "training.jsonl", "")
    refusal = _refusal(str(tmp_path / "trainin.jsonl"))
    assert "trainin.jsonl (did you mean training.jsonl?)" in refusal


@pytest.mark.parametrize("name", ["no/such/rows.csv", "./rows", "rows.jsonl.gz", "/no/such/folder"])
def test_a_missing_path_is_not_looked_for_on_the_hub(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "_hub", lambda *_: pytest.fail("asked the hub"))
    assert f"There is no file {name}" in _refusal(name)


@pytest.mark.parametrize("name", ["rows.txt", "rows", "rows.xlsx", "rows.gz"])
def test_an_unknown_kind_of_file_names_the_known_ones(tmp_path, name):
    path = _write(tmp_path, name, "a,b\n1,2\n")
    with pytest.raises(DataError) as caught:
        load_rows(path)
    assert path in caught.value.what
    assert ".jsonl" in caught.value.fix


def test_a_folder_without_data_files_is_refused(tmp_path):
    _write(tmp_path, "README.md", "not data")
    assert str(tmp_path) in _refusal(str(tmp_path))


@pytest.mark.parametrize("damage", ["not gzip", "cut short", "garbled"])
def test_a_damaged_gz_file_is_refused_with_its_name(tmp_path, damage):
    packed = gzip.compress(_jsonl(ROWS * 50).encode())
    garbled = packed[:12] + b"\xff" * 20 + packed[32:]
    path = _write(tmp_path, "a.jsonl.gz", {"not gzip": b"{}\n", "cut short": packed[:-20], "garbled": garbled}[damage])
    assert path in _refusal(path)


def test_a_damaged_parquet_file_is_refused_with_its_name(tmp_path):
    path = _write(tmp_path, "a.parquet", b"PAR1 but not really PAR1")
    assert path in _refusal(path)


def test_a_hub_name_is_asked_for_with_split_subset_and_revision(monkeypatch):
    import datasets

    asked = {}

    def load_dataset(path, name, *, split, revision):
        asked.update(path=path, name=name, split=split, revision=revision)
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = load_rows("someone/rows@v2", "test", "small")
    assert asked == {"path": "someone/rows", "name": "small", "split": "test", "revision": "v2"}
    assert [(row.values, row.where) for row in rows][1] == (ROWS[1], "someone/rows@v2 small test row 2")


@pytest.mark.parametrize("error", [ConnectionError("no route\nto host"), ValueError("no split"), FileNotFoundError()])
def test_a_name_the_hub_does_not_give_is_refused_with_the_reason_in_one_line(monkeypatch, error):
    import datasets

    def load_dataset(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    refusal = _refusal("someone/rows")
    assert "someone/rows" in refusal
    assert (str(error).splitlines() or [type(error).__name__])[0] in refusal
    assert "\n" not in refusal


def test_a_name_the_hub_does_not_have_suggests_what_lies_where_it_points(monkeypatch, tmp_path):
    import datasets

    def load_dataset(*_, **__):
        raise FileNotFoundError("no such data set")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "train").mkdir(parents=True)
    assert "data/trane (did you mean train?) is neither" in _refusal("data/trane")
    assert "yodaa (did you mean yoda?)" in _refusal("yodaa")


def test_a_folders_files_named_after_splits_are_splits(tmp_path):
    for name in ("train-1", "train-2", "test"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": name, "completion": "x"}) + "\n")
    assert [row.values["prompt"] for row in load_rows(str(tmp_path))] == ["train-1", "train-2"]
    assert [row.values["prompt"] for row in load_rows(str(tmp_path), "test")] == ["test"]
    with pytest.raises(DataError, match="no file for the split 'validation'"):
        load_rows(str(tmp_path), "validation")


@pytest.mark.parametrize("name", ["", " "])
def test_no_name_is_not_the_working_folder(tmp_path, monkeypatch, name):
    _write(tmp_path, "rows.jsonl", '{"n": 1}\n')
    monkeypatch.chdir(tmp_path)
    assert "has no name" in _refusal(name)


def test_an_address_is_not_looked_for_as_a_file():
    assert "https://example.com/rows.jsonl is an address" in _refusal("https://example.com/rows.jsonl")
    assert "Name it by its id there: org/rows" in _fix("https://huggingface.co/datasets/org/rows/viewer")


def test_a_revision_of_what_is_on_this_machine_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _write(tmp_path, "rows.jsonl", '{"n": 1}\n')
    (tmp_path / "org" / "rows").mkdir(parents=True)
    assert "rows.jsonl is a file on this machine, where it has none" in _refusal("rows.jsonl@v1")
    assert "org/rows is a folder on this machine" in _refusal("org/rows@v1"), "datasets would read that folder, whatever revision"


@pytest.mark.parametrize("name", ["rows.jsonl", "*.jsonl", "folder", "yoda"])
def test_what_only_the_hub_has_is_not_ignored_of_data_on_this_machine(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    _write(tmp_path / "folder", "rows.jsonl", '{"n": 1}\n')
    _write(tmp_path, "rows.jsonl", '{"n": 1}\n')
    check_name(name, "train")
    with pytest.raises(DataError, match="dataset_config 'small' would be ignored"):
        check_name(name, "train", "small")
    if name == "yoda":
        check_name(name, "test")
        return
    with pytest.raises(DataError, match="has no splits: all of it would be read, and dataset_split 'test' ignored"):
        check_name(name, "test")


def test_a_folder_of_splits_has_them(tmp_path):
    for split in ("train", "test"):
        _write(tmp_path, f"{split}.jsonl", '{"n": 1}\n')
    check_name(str(tmp_path), "test")
    with pytest.raises(DataError, match="no file for the split 'dev'"):
        check_name(str(tmp_path), "dev")


def test_a_home_that_is_nobodys_is_a_path_that_is_not_there():
    assert "There is no file ~nobody-of-that-name/rows.jsonl" in _refusal("~nobody-of-that-name/rows.jsonl")
