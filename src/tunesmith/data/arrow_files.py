"""Rows of parquet files, saved data sets and the hub, by way of Arrow."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.data.bad_rows import OnBadRow
from tunesmith.data.row import Row
from tunesmith.data.signatures import LONGEST, check_signature
from tunesmith.errors import DataError, RowError, nearest

BATCH = 256
"""Rows turned into Python objects at once."""


def parquet_rows(path: Path, bad: OnBadRow) -> Iterator[Row]:
    """The rows of a parquet file. Raises DataError if it is damaged; a row that has no Python value goes to ``bad``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as opened:
            if (begin := opened.read(LONGEST))[:4] != b"PAR1":
                check_signature(path, begin)
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
                raise DataError(f"{path} has two columns {twice[0]!r}.", "Give every column a name of its own.")
            yield from _batches(file.iter_batches(batch_size=BATCH), str(path), bad)
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: a column's name is not UTF-8
        raise DataError(f"{path} is not a readable parquet file: {_line(error)}", "Write it again.") from error


def saved_rows(folder: Path, split: str, bad: OnBadRow) -> Iterator[Row]:
    """The rows of a folder that ``datasets`` saved. Raises DataError if it is damaged or lacks the split."""
    import pyarrow as pa
    from datasets import DatasetDict, load_from_disk

    try:
        saved = load_from_disk(str(folder))
        named = isinstance(saved, DatasetDict)
        if named:
            if split not in saved:
                raise DataError(
                    f"{folder} has no split {split!r}{nearest(split, saved)}; it has {', '.join(saved)}.", "Name one of them."
                )
            saved = saved[split]
        yield from dataset_rows(saved, label(str(folder), split if named else "train"), bad)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} is not a readable saved data set: {_line(error)}", "Save it again.") from error


def dataset_rows(dataset: Any, name: str, bad: OnBadRow) -> Iterator[Row]:
    """The rows of a ``datasets.Dataset``. Arrow's own values are read: pictures and sounds stay undecoded bytes."""
    tables = dataset.with_format("arrow").iter(batch_size=BATCH)
    yield from _batches((batch for table in tables for batch in table.to_batches()), name, bad)


def label(name: str, split: str, config: str | None = None) -> str:
    """What rows of a split are called: by the data set's name, and what tells them from its other rows."""
    return " ".join([name, *([config] if config else []), *([split] if split != "train" else [])])


def _batches(batches: Iterator[Any], name: str, bad: OnBadRow) -> Iterator[Row]:
    number = 0
    for batch in batches:
        try:
            rows = batch.to_pylist()
        except (ValueError, OverflowError):  # text that is not UTF-8, a date beyond Python's
            rows = [_alone(batch, index) for index in range(batch.num_rows)]
        for values in rows:
            number += 1
            if isinstance(values, str):
                bad(RowError(f"{name} row {number} cannot be read: {values}.", "Mend the row or remove it."))
            else:
                yield Row({key: _unpadded(value) for key, value in values.items()}, f"{name} row {number}")


def _alone(batch: Any, index: int) -> Any:
    """One row, or why it cannot be read."""
    try:
        return batch.slice(index, 1).to_pylist()[0]
    except (ValueError, OverflowError) as error:
        return _line(error)


def _unpadded(value: Any) -> Any:
    """The value without the nulls Arrow pads objects with: all objects of a column have the keys that any of them has."""
    if isinstance(value, dict):
        return {key: _unpadded(item) for key, item in value.items() if item is not None}
    return [_unpadded(item) for item in value] if isinstance(value, list) else value


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
