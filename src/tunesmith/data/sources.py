"""Where rows come from: the bundled data set, files, folders, the hub. Every row knows its file and line."""

import os
import re
import stat
from collections.abc import Iterator
from os.path import expanduser
from pathlib import Path
from typing import Any

from tunesmith.data.arrow_files import dataset_rows, label, parquet_rows, saved_rows
from tunesmith.data.bad_rows import BadRows, OnBadRow, refuse
from tunesmith.data.row import Row
from tunesmith.data.signatures import UNREAD
from tunesmith.data.text_files import text_rows
from tunesmith.errors import DataError, nearest
from tunesmith.hub_client import first_line, id_in, why_not_given
from tunesmith.suffixes import DATA_SUFFIXES

__all__ = ["BUNDLED", "BUNDLED_COLUMNS", "Row", "absolute_name", "is_bundled", "iter_rows", "load_rows"]

BUNDLED = Path(__file__).parent / "bundled"
BUNDLED_COLUMNS = {"yoda": ("sentence", "translation_extra")}
"""Bundled data sets: their prompt and completion columns."""


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


def check_name(name: str, split: str | None = None, config: str | None = None) -> None:
    """See that there is a file, a folder or bundled data of that name, or else that the hub has it; no row is read.

    Args:
        split, config: that are to be there, if that is known yet; of data on the hub it is not asked.

    Raises:
        DataError: as `iter_rows` would before its first row; or they would mean nothing to what is on this machine.
    """
    path = Path(expanduser(name))
    if split is not None or _kind(path) != "a folder":
        _rows_of(name, split or "train", None, refuse)  # rows are read one by one, when they are asked for
    if not (is_bundled(name) or _kind(path) or _matches(path)):
        _check_on_hub(name)
    elif config is not None:
        what = f"{name} is on this machine, and subsets are the hub's: dataset_config {config!r} would be ignored."
        raise DataError(what, "Leave it out (in a mixture: subset).")
    elif split not in (None, "train") and not (is_bundled(name) or _has_splits(path)):
        what = f"{name} has no splits: all of it would be read, and dataset_split {split!r} ignored."
        raise DataError(what, f"Leave it out (in a mixture: split), or name a folder with files such as {split}.jsonl.")


def absolute_name(name: str) -> str:
    """The same rows by a name that means them from any folder; bundled data and hub ids as they are."""
    path = Path(expanduser(name))
    if is_bundled(name):
        return name
    if _kind(path):
        return str(path.resolve())
    return str(path.parent.resolve() / path.name) if _matches(path) else name


def _rows_of(name: str, split: str, config: str | None, bad: OnBadRow) -> Iterator[Row]:
    path = Path(expanduser(name))
    if not name.strip():
        raise DataError("The data set has no name.", "Give a file, a folder or a hub id.")
    if "://" in name:
        there = id_in(name)
        fix = f"Name it by its id there: {there}" if there else "Fetch it and name the file."
        raise DataError(f"{name} is an address, and nothing is read from the network but the hub.", fix)
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
    if _plain_suffix(path) in DATA_SUFFIXES or path.suffix == ".gz" or name.startswith((".", "/", "~")):
        raise DataError(f"There is no file {name}{nearest(path.name, _siblings(path))}.", "Check the path.")
    repo, at, revision = name.partition("@")
    if at and (here := _kind(Path(expanduser(repo)))):
        what = f"{name} names a revision, and {repo} is {here} on this machine, where it has none."
        raise DataError(what, f"Leave {at + revision} out.")
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
    return sorted(match for match in path.parent.glob(path.name) if _holds_rows(match))


def _bundled(name: str, split: str, bad: OnBadRow) -> Iterator[Row]:
    path = BUNDLED / name / f"{split}.jsonl"
    if not path.is_file():
        raise DataError(f"The bundled {name} has no split {split!r}.", "Use train or test.")
    return _file(path, bad)


def _folder(folder: Path, split: str, bad: OnBadRow) -> Iterator[Row]:
    if _saved(folder):
        return saved_rows(folder, split, bad)
    return (row for path in files_of(folder, split)[0] for row in _file(path, bad))


def files_of(folder: Path, split: str) -> tuple[list[Path], list[str]]:
    """The data files of a folder that are read for a split, and the names of those in it that are not.

    Raises:
        DataError: it cannot be listed, or has no file for the split.
    """
    try:
        inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror or error}.", "Check the folder and its permissions.") from error
    files = [path for path in inside if _holds_rows(path)]
    if not files:
        deeper = [path for path in inside if _folder_of_rows(path)]
        fix = f"Name the folder {deeper[0]}." if deeper else f"Put {', '.join(DATA_SUFFIXES)} files in it."
        raise DataError(f"The folder {folder} holds no data file.", fix)
    # Files named after splits are splits, as on the hub: the test file of a folder is not for training.
    read = [path for path in files if _split_of(path) == split] if any(map(_split_of, files)) else files
    if not read:
        named = next(path for path in files if _split_of(path))
        raise DataError(f"{folder} has no file for the split {split!r}, only {named.name} and the like.", "Name a file of it.")
    left = [path.name for path in inside if _may_hold_rows(path) and path not in read and not _split_of(path)]
    return read, left


def left_out(name: str, split: str) -> list[str]:
    """What a folder holds besides the files that are read for a split and those of other splits, as far as it may hold rows."""
    path = Path(expanduser(name))
    if is_bundled(name) or _kind(path) != "a folder" or _saved(path):
        return []
    return files_of(path, split)[1]


def _saved(folder: Path) -> bool:
    """Whether ``datasets`` saved it."""
    return (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file()


def _holds_rows(path: Path) -> bool:
    """Whether a file is of a kind that is read; hidden ones are other programs' (``._rows.jsonl`` of macOS)."""
    return _plain_suffix(path) in DATA_SUFFIXES and not path.name.startswith(".")


def _may_hold_rows(path: Path) -> bool:
    return _holds_rows(path) or path.suffix.lower() in UNREAD or _folder_of_rows(path)


def _folder_of_rows(path: Path) -> bool:
    try:
        return path.is_dir() and any(map(_holds_rows, path.iterdir()))
    except OSError:  # not for us to look into
        return False


def _has_splits(path: Path) -> bool:
    """Whether it is a folder that ``datasets`` saved, or one with files named after splits."""
    return _kind(path) == "a folder" and (_saved(path) or any(_split_of(each) for each in path.iterdir() if _holds_rows(each)))


def _split_of(path: Path) -> str | None:
    """The split a file's name begins with: train-00001.parquet is train, dev.jsonl validation."""
    word = re.split(r"[^a-z]", path.name.lower(), maxsplit=1)[0]
    return {"train": "train", "test": "test", "validation": "validation", "valid": "validation", "val": "validation",
            "dev": "validation", "eval": "validation"}.get(word)  # fmt: skip


def _check_on_hub(name: str) -> None:
    """Ask the hub once for a data set, before `datasets` is imported, which takes seconds and then asks for half a minute. Left to
    it is what it may have kept on this machine, and to ask a hub again that is at fault.

    Raises:
        DataError: there is no such data set, it may not be read, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi, constants, errors
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    repo, _, revision = name.partition("@")
    if repo.startswith("buckets/") or _may_be_kept(repo):
        return
    if os.environ.get("HF_DATASETS_OFFLINE", "").upper() in constants.ENV_VARS_TRUE_VALUES:  # the client knows HF_HUB_OFFLINE alone
        raise _not_given(name, "it could not be asked: HF_DATASETS_OFFLINE is set")
    no_name = errors.HFValidationError, "it has no such data set, or a private one"
    try:
        HfApi().dataset_info(repo, revision=revision or None, expand=["sha"], timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except (OSError, ValueError, ImportError, httpx.RequestError, httpx.InvalidURL) as error:
        why = why_not_given(error, "data set", revision, no_name)
        if why or not isinstance(error, errors.HfHubHTTPError):  # else a fault of the hub's own
            raise _not_given(name, why or first_line(error)) from error


def _may_be_kept(repo: str) -> bool:
    """Whether `datasets` keeps any data of the same owner on this machine, or of those without one: only it knows which."""
    from huggingface_hub import constants

    place = Path(os.environ.get("HF_DATASETS_CACHE", f"{constants.HF_HOME}/datasets")).expanduser()
    owner, slash, _ = repo.partition("/")
    try:
        return place.is_dir() and any(kept.name.startswith(f"{owner}___" if slash else "") for kept in place.iterdir())
    except OSError:  # not for us to look into
        return True


def _hub(name: str, split: str, config: str | None, bad: OnBadRow) -> Iterator[Row]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    repo, _, revision = name.partition("@")
    try:
        dataset: Any = load_dataset(repo, config, split=split, revision=revision or None)
    except (OSError, ValueError, RuntimeError, ImportError, DatasetsError) as error:
        raise _not_given(name, first_line(error)) from error
    yield from dataset_rows(dataset, label(name, split, config), bad)


def _not_given(name: str, why: str) -> DataError:
    """That data are nowhere to be had. why: in the hub's words."""
    path = Path(name.partition("@")[0])
    meant = nearest(path.name, [*BUNDLED_COLUMNS, *_siblings(path)])
    return DataError(
        f"{name}{meant} is neither a bundled data set ({', '.join(BUNDLED_COLUMNS)}), nor a file or folder here, and the hub "
        f"could not give it: {why}",
        "Check the name, the split and your network, or give a path.",
    )


def _plain_suffix(path: Path) -> str:
    name = path.name.lower()
    return Path(name.removesuffix(".gz")).suffix


def _file(path: Path, bad: OnBadRow) -> Iterator[Row]:
    suffix, kind = _plain_suffix(path), _kind(path)
    if suffix not in DATA_SUFFIXES:
        folder = f"Name its folder, {path.parent}." if suffix == ".arrow" and _saved(path.parent) else ""
        fix = folder or f"{UNREAD.get(suffix, '')} Use one of {', '.join(DATA_SUFFIXES)}.".lstrip()
        raise DataError(f"{path} is not a kind of data file that can be read.", fix)
    if kind != "a file":
        raise DataError(f"{path} is {kind or 'gone'}, not a file.", "Put a file there, or take it out of the folder.")
    if suffix == ".parquet":
        return parquet_rows(path, bad)
    return text_rows(path, suffix, bad)
