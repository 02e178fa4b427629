"""Where rows come from: the bundled data set, files, folders, the hub. Every row knows its file and line."""

import os.path
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.data.arrow_files import dataset_rows, label, parquet_rows, saved_rows
from tunesmith.data.bad_rows import BadRows, OnBadRow, refuse
from tunesmith.data.row import Row
from tunesmith.data.text_files import text_rows
from tunesmith.errors import DataError, nearest

__all__ = ["BUNDLED", "BUNDLED_COLUMNS", "Row", "absolute_name", "is_bundled", "iter_rows", "load_rows"]

BUNDLED = Path(__file__).parent / "bundled"
BUNDLED_COLUMNS = {"yoda": ("sentence", "translation_extra")}
"""Bundled data sets: their prompt and completion columns."""

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


def load_rows(
    name: str, split: str = "train", config: str | None = None, limit: int | None = None, bad: OnBadRow = refuse
) -> list[Row]:
    """All rows of a data set, in order, at most ``limit``.

    Args:
        name: bundled data, a file, a folder, a pattern (``data/*.jsonl``), or a hub id with ``@revision``.
        split, config: of a hub data set or a saved one. bad: told of every row that cannot be read; by default it raises.

    Raises:
        DataError: nothing of that name, a file that cannot be read (with its line), or no row at all.
    """
    return list(iter_rows(name, split, config, limit, bad))


def iter_rows(
    name: str, split: str = "train", config: str | None = None, limit: int | None = None, bad: OnBadRow = refuse
) -> Iterator[Row]:
    """The rows of `load_rows`, one after another, so that memory need not hold them all. Raises as `load_rows`."""
    number = 0
    for number, row in enumerate(_rows_of(name, split, config, bad), 1):
        yield row
        if number == limit:
            return
    if not number:
        if isinstance(bad, BadRows):
            bad.check_some_left(name, 0)
        raise DataError(f"{name} has no rows.", "Give a file with at least one row.")


def is_bundled(name: str) -> bool:
    """Whether the name means bundled data: a file or folder of that name here goes before it."""
    return name in BUNDLED_COLUMNS and not Path(name).exists()


def absolute_name(name: str) -> str:
    """The same rows by a name that means them from any folder; bundled data and hub ids as they are."""
    path = Path(name).expanduser()
    if is_bundled(name):
        return name
    if _kind(path):
        return str(path.resolve())
    return str(path.parent.resolve() / path.name) if _matches(path) else name


def _rows_of(name: str, split: str, config: str | None, bad: OnBadRow) -> Iterator[Row]:
    path = Path(name).expanduser()
    if is_bundled(name):
        return _bundled(name, split, bad)
    kind = _kind(path)
    if kind == "a folder":
        return _folder(path, split, bad)
    if kind == "a file":
        return _file(path, bad)
    if kind:
        raise DataError(f"{name} is {kind}, not a file or folder of rows.", "Write its rows into a file.")
    if matches := _matches(path):
        return (row for match in matches for row in _file(match, bad))
    if path.suffix in SUFFIXES or path.name.endswith(".gz") or name.startswith((".", "/", "~")):
        raise DataError(f"There is no file {name}{nearest(path.name, _siblings(path))}.", "Check the path.")
    return _hub(name, split, config, bad)


def _kind(path: Path) -> str:
    """What stands at a path, in words; nothing if nothing does. A pipe is told without being opened, which would wait."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return "a link that leads nowhere" if os.path.islink(path) else ""
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFREG: "a file", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _siblings(path: Path) -> list[str]:
    try:
        return [sibling.name for sibling in path.parent.iterdir()]
    except (OSError, ValueError):
        return []


def _matches(path: Path) -> list[Path]:
    """The files a pattern such as data/*.jsonl means, by name."""
    if not re.search(r"[*?]", path.name) or _kind(path.parent) != "a folder":
        return []
    return sorted(match for match in path.parent.glob(path.name) if _plain_suffix(match) in SUFFIXES)


def _bundled(name: str, split: str, bad: OnBadRow) -> Iterator[Row]:
    path = BUNDLED / name / f"{split}.jsonl"
    if not path.is_file():
        raise DataError(f"The bundled {name} has no split {split!r}.", "Use train or test.")
    return _file(path, bad)


def _folder(folder: Path, split: str, bad: OnBadRow) -> Iterator[Row]:
    if (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file():
        yield from saved_rows(folder, split, bad)
        return
    try:
        files = sorted(path for path in folder.iterdir() if _plain_suffix(path) in SUFFIXES)
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror or error}.", "Check the folder and its permissions.") from error
    if not files:
        raise DataError(f"The folder {folder} holds no data file.", f"Put {', '.join(SUFFIXES)} files in it.")
    # Files named after splits are splits, as on the hub: the test file of a folder is not for training.
    named = [path for path in files if _split_of(path)]
    if named and not any(_split_of(path) == split for path in files):
        raise DataError(f"{folder} has no file for the split {split!r}, only {named[0].name} and the like.", "Name a file of it.")
    for path in [path for path in files if _split_of(path) == split] if named else files:
        yield from _file(path, bad)


def _split_of(path: Path) -> str | None:
    """The split a file's name begins with: train-00001.parquet is train, dev.jsonl validation."""
    word = re.split(r"[^a-z]", path.name.lower(), maxsplit=1)[0]
    return {"train": "train", "test": "test", "validation": "validation", "valid": "validation", "val": "validation",
            "dev": "validation", "eval": "validation"}.get(word)  # fmt: skip


def _hub(name: str, split: str, config: str | None, bad: OnBadRow) -> Iterator[Row]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    repo, _, revision = name.partition("@")
    try:
        dataset: Any = load_dataset(repo, config, split=split, revision=revision or None)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{name} is neither a bundled data set ({', '.join(BUNDLED_COLUMNS)}), nor a file or folder here, and the hub "
            f"could not give it: {reason}",
            "Check the name and the split, or give a path.",
        ) from error
    yield from dataset_rows(dataset, label(name, split, config), bad)


def _plain_suffix(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _file(path: Path, bad: OnBadRow) -> Iterator[Row]:
    suffix, kind = _plain_suffix(path), _kind(path)
    if suffix not in SUFFIXES:
        raise DataError(f"{path} is not a kind of data file that can be read.", f"Use one of {', '.join(SUFFIXES)}.")
    if kind != "a file":
        raise DataError(f"{path} is {kind or 'gone'}, not a file.", "Put a file there, or take it out of the folder.")
    if suffix == ".parquet":
        return parquet_rows(path, bad)
    return text_rows(path, suffix, bad)
