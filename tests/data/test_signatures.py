"""Proves that a file which is something else than its name says is told for what it is, and that rows are never taken for that."""

import bz2
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tunesmith.data.bad_rows import BadRows
from tunesmith.data.signatures import SIGNATURES
from tunesmith.data.sources import load_rows
from tunesmith.errors import DataError

LINES = b'{"prompt": "a", "completion": "b"}\n'
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
    return file.getvalue()


def parquet() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"prompt": ["a"], "completion": ["b"]}), file)
    return file.getvalue()


def compressed(codec: str) -> bytes:
    file = io.BytesIO()
    with pa.CompressedOutputStream(file, codec) as stream:
        stream.write(LINES)
        stream.flush()
        return file.getvalue()


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, bytes], str]:
    """Writes a file into the working folder; what is said when it is read, also where bad rows are left out."""
    monkeypatch.chdir(tmp_path)

    def read(name: str, content: bytes) -> str:
        Path(name).write_bytes(content)
        with pytest.raises(DataError) as caught:
            load_rows(name, bad=BadRows("skip"))
        return str(caught.value)

    return read


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet"])
@pytest.mark.parametrize(
    ("make", "what", "fix"),
    [
        (lambda: gzip.compress(LINES), "compressed with gzip", ".gz."),
        (lambda: bz2.compress(LINES), "compressed with bzip2", "Unpack it"),
        (lambda: lzma.compress(LINES), "compressed with xz", "Unpack it"),
        (lambda: compressed("zstd"), "compressed with zstd", "Unpack it"),
        (lambda: compressed("lz4"), "compressed with lz4", "Unpack it"),
        (zipped, "a zip archive, as spreadsheets (.xlsx, .ods) are", "Save it as CSV"),
        (lambda: LFS, "a pointer of Git LFS", "git lfs pull"),
        (lambda: b"<!DOCTYPE html>\n<html></html>\n", "a web page", "/resolve/"),
    ],
)
def test_it_is_told_by_how_it_begins(
    told: Callable[[str, bytes], str], name: str, make: Callable[[], bytes], what: str, fix: str
) -> None:
    said = told(name, make())
    assert said.startswith(f"{name} is {what}")
    assert fix in said


def test_parquet_under_another_name_is_named_as_it_should_be(told: Callable[[str, bytes], str]) -> None:
    assert told("a.csv", parquet()).endswith("a.csv is parquet, whatever its name says. Call it a.parquet.")


def test_what_was_compressed_twice_is_told(told: Callable[[str, bytes], str]) -> None:
    assert "is compressed with gzip" in told("a.jsonl.gz", gzip.compress(gzip.compress(LINES)))


@pytest.mark.parametrize("header", ["PAR1", "ARROW1", "BZh", "BZh9", "PK", "7z", "version", "html"])
def test_a_column_may_be_called_what_such_files_begin_with(tmp_path: Path, header: str) -> None:
    (tmp_path / "a.csv").write_text(f"{header},b\n1,2\n")
    assert load_rows(str(tmp_path / "a.csv"))[0].values == {header: "1", "b": "2"}


def test_no_line_of_json_begins_so() -> None:
    for row in ({"prompt": "a"}, {}, []):
        assert not any(json.dumps(row).encode().startswith(begin) for begin, _, _ in SIGNATURES)


@pytest.mark.parametrize(("name", "fix"), [("a.jsonl.zst", "Unpack it"), ("a.xlsx", "Save it as CSV"), ("a.zip", "Unpack it")])
def test_a_kind_that_is_not_read_says_how_to_make_one_that_is(told: Callable[[str, bytes], str], name: str, fix: str) -> None:
    said = told(name, b"")
    assert f"can be read. {fix}" in said
    assert "Use one of .jsonl" in said
