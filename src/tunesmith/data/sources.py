"""Where rows come from: the bundled data set, files, folders, the hub. Every row knows its file and line."""

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from tunesmith.errors import DataError, nearest

BUNDLED = Path(__file__).parent / "bundled"
BUNDLED_COLUMNS = {"yoda": ("sentence", "translation_extra")}
"""Bundled data sets: their prompt and completion columns."""

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class Row:
    """values: column to value. where: file and line (or row number) as a user would say it."""

    values: dict[str, Any]
    where: str


def load_rows(name: str, split: str = "train", config: str | None = None, limit: int | None = None) -> list[Row]:
    """All rows of a data set, in order, at most ``limit``.

    Raises:
        DataError: nothing of that name, a file that cannot be read (with its line), or no row at all.
    """
    rows: list[Row] = []
    for row in _rows_of(name, split, config):
        rows.append(row)
        if limit is not None and len(rows) == limit:
            break
    if not rows:
        raise DataError(f"{name} has no rows.", "Give a file with at least one row.")
    return rows


def is_bundled(name: str) -> bool:
    """Whether the name means bundled data: a file or folder of that name here goes before it."""
    return name in BUNDLED_COLUMNS and not Path(name).exists()


def _rows_of(name: str, split: str, config: str | None) -> Iterator[Row]:
    path = Path(name).expanduser()
    if is_bundled(name):
        return _bundled(name, split)
    if path.is_dir():
        return _folder(path, split)
    if path.is_file():
        return _file(path)
    if path.suffix in SUFFIXES or path.name.endswith(".gz") or name.startswith((".", "/", "~")):
        siblings = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        raise DataError(f"There is no file {name}{nearest(path.name, siblings)}.", "Check the path.")
    return _hub(name, split, config)


def _bundled(name: str, split: str) -> Iterator[Row]:
    path = BUNDLED / name / f"{split}.jsonl"
    if not path.is_file():
        raise DataError(f"The bundled {name} has no split {split!r}.", "Use train or test.")
    return _file(path)


def _folder(folder: Path, split: str) -> Iterator[Row]:
    if (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file():
        from datasets import DatasetDict, load_from_disk

        saved = load_from_disk(str(folder))
        if isinstance(saved, DatasetDict):
            if split not in saved:
                raise DataError(
                    f"{folder} has no split {split!r}{nearest(split, saved)}; it has {', '.join(saved)}.", "Name one of them."
                )
            saved = saved[split]
        yield from _dataset(saved, str(folder))
        return
    files = sorted(path for path in folder.iterdir() if _plain_suffix(path) in SUFFIXES)
    if not files:
        raise DataError(f"The folder {folder} holds no data file.", f"Put {', '.join(SUFFIXES)} files in it.")
    # Files named after splits are splits, as on the hub: the test file of a folder is not for training.
    named = [path for path in files if _split_of(path)]
    if named and not any(_split_of(path) == split for path in files):
        raise DataError(f"{folder} has no file for the split {split!r}, only {named[0].name} and the like.", "Name a file of it.")
    for path in [path for path in files if _split_of(path) == split] if named else files:
        yield from _file(path)


def _split_of(path: Path) -> str | None:
    """The split a file's name begins with: train-00001.parquet is train, dev.jsonl validation."""
    word = re.split(r"[^a-z]", path.name.lower(), maxsplit=1)[0]
    return {"train": "train", "test": "test", "validation": "validation", "valid": "validation", "val": "validation",
            "dev": "validation", "eval": "validation"}.get(word)  # fmt: skip


def _hub(name: str, split: str, config: str | None) -> Iterator[Row]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    repo, _, revision = name.partition("@")
    try:
        dataset = load_dataset(repo, config, split=split, revision=revision or None)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{name} is neither a bundled data set ({', '.join(BUNDLED_COLUMNS)}), nor a file or folder here, and the hub "
            f"could not give it: {reason}",
            "Check the name and the split, or give a path.",
        ) from error
    yield from _dataset(dataset, name)


def _dataset(dataset: Any, name: str) -> Iterator[Row]:
    for number, values in enumerate(dataset):
        yield Row(dict(values), f"{name} row {number + 1}")


def _plain_suffix(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _file(path: Path) -> Iterator[Row]:
    suffix = _plain_suffix(path)
    if suffix == ".parquet":
        yield from _parquet(path)
        return
    if suffix not in SUFFIXES:
        raise DataError(f"{path} is not a kind of data file that can be read.", f"Use one of {', '.join(SUFFIXES)}.")
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _csv}
    try:
        with gzip.open(path, "rt", encoding="utf-8-sig") if path.suffix == ".gz" else path.open(encoding="utf-8-sig") as file:
            yield from readers[suffix](file, path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} line {_bad_line(path)} is not UTF-8 text: {error.reason}.", "Save it as UTF-8.") from error
    except (EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged or cut short: {error}", "Fetch or compress it again.") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}.", "Check the file and its permissions.") from error


def _bad_line(path: Path) -> int:
    """The first line that is not UTF-8; a decoder reads ahead, so its own place is of no use."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return number


def _jsonl(file: TextIO, path: Path) -> Iterator[Row]:
    for number, line in enumerate(file, 1):
        if line.strip():
            yield Row(_object(_parse(line, path, number), f"{path} line {number}"), f"{path} line {number}")


def _json(file: TextIO, path: Path) -> Iterator[Row]:
    text = file.read()
    if not text.strip():
        return
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):  # JSON lines under a .json name are common
            file.seek(0)
            yield from _jsonl(file, path)
            return
        raise DataError(f"{path} line {error.lineno}: {error.msg}.", "Mend the JSON there.") from error
    except RecursionError as error:
        raise DataError(f"{path} is nested too deeply.", "Write a list of objects.") from error
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        content = lists[0] if len(lists) == 1 else [content]
    if not isinstance(content, list):
        raise DataError(f"{path} holds a {type(content).__name__}, not a list of rows.", "Write a list of objects.")
    for number, value in enumerate(content, 1):
        yield Row(_object(value, f"{path} row {number}"), f"{path} row {number}")


def _parse(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise DataError(f"{path} line {number} is not JSON: {reason}.", "Write one JSON object a line.") from error


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(
            f"{where} is a {type(value).__name__}, not an object.", 'Write rows such as {"prompt": …, "completion": …}.'
        )
    return value


def _csv(file: TextIO, path: Path) -> Iterator[Row]:
    reader = csv.DictReader(file, delimiter="\t" if _plain_suffix(path) == ".tsv" else ",", strict=True)
    try:
        for values in reader:
            if None in values or None in values.values():
                raise DataError(
                    f"{path} line {reader.line_num} has another number of fields than the header's {len(reader.fieldnames or [])}.",
                    "Quote fields that contain the separator.",
                )
            yield Row(dict(values), f"{path} line {reader.line_num}")
    except csv.Error as error:
        raise DataError(f"{path} line {reader.reader.line_num}: {error}.", "Mend the row there.") from error


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        for number, values in enumerate(v for batch in pq.ParquetFile(path).iter_batches() for v in batch.to_pylist()):
            yield Row(values, f"{path} row {number + 1}")
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not a readable parquet file: {error}", "Write it again.") from error
