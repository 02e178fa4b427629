"""Rows of csv and tsv files. A row is named by its first line; without a header that can be relied on none is read."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from tunesmith.data.bad_rows import OnBadRow
from tunesmith.data.lines import BOM, Lines, endless, is_utf8
from tunesmith.data.row import ROW_LIMIT, Row
from tunesmith.errors import DataError, RowError


def csv_rows(file: TextIO, path: Path, bad: OnBadRow) -> Iterator[Row]:
    """The rows of an open file. Raises DataError for what spoils all of it; what is wrong with one row goes to ``bad``."""
    csv.field_size_limit(ROW_LIMIT)  # the module's own is 131,072 characters
    header: list[str] = []
    lines = Lines(file, path, lambda error: _refuse(error, header, bad))
    separator = "\t" if path.name.lower().removesuffix(".gz").endswith(".tsv") else _comma_or_semicolon(file)
    note = f"{path} is separated by ';', not by commas" if separator == ";" else ""
    reader = csv.reader(iter(lines), delimiter=separator, strict=True)
    while True:
        lines.row = lines.number + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            if "unexpected end" in str(error):
                what = f"{lines.begun}: a quoted field of the row that begins here never ends."
                raise DataError(what, "Close its quote.") from error
            if "field limit" in str(error):
                raise endless(lines.begun) from error
            _refuse(RowError(f"{lines.begun}: {error}.", "Mend the row there."), header, bad)
            continue
        if fields is None:
            return
        try:
            if not header:
                header = _header(fields, separator, lines.begun)
            elif fields:
                yield Row(_cells(header, fields, separator, lines.begun), lines.begun, note)
                note = ""
        except RowError as error:
            _refuse(error, header, bad)


def _comma_or_semicolon(file: TextIO) -> str:
    """What separates the fields of a csv file: ``;``, as spreadsheets write where the comma is the decimal mark, only if the header
    has one outside of quotes and no comma there. The file is at its beginning then, as before."""
    header = next(filter(str.strip, iter(lambda: file.readline(ROW_LIMIT), "")), "")
    file.seek(0)
    bare = re.sub(r'"[^"]*"?', "", header)  # a quote may go on in the next line
    return ";" if ";" in bare and "," not in bare else ","


def _refuse(error: RowError, header: list[str], bad: OnBadRow) -> None:
    """Without a header no row means anything."""
    if not header:
        raise error
    bad(error)


def _header(fields: list[str], separator: str, where: str) -> list[str]:
    """Column names. Raises RowError."""
    if fields and fields[0].lower() in ("sep=", f"sep={separator}"):
        raise RowError(f"{where} tells Excel the separator and is no header.", "Remove the line.")
    if twice := [name for name in dict.fromkeys(fields) if fields.count(name) > 1]:
        raise RowError(f"{where}: the header names {twice[0]!r} twice.", "Give every column a name of its own.")
    if spaced := [name for name in fields if name != name.strip()]:
        raise RowError(
            f"{where}: there is space around the column name {spaced[0]!r}, as perhaps around every field below it.",
            "Put none beside the separators: it would be learnt.",
        )
    if other := [mark for mark in ",;\t|" if len(fields) == 1 and mark != separator and mark in fields[0]]:
        raise RowError(
            f"{where}: the header is one column, {fields[0]!r}: its fields are separated by {other[0]!r}, not {separator!r}.",
            "Separate them by commas in .csv, by tabs in .tsv.",
        )
    return _texts(fields, where)


def _cells(header: list[str], fields: list[str], separator: str, where: str) -> dict[str, str]:
    """The values by their columns. Raises RowError; and DataError where ``;`` was guessed from the header alone and is not borne
    out: then no row is certain."""
    if len(fields) != len(header):
        what = f"{where} has {len(fields)} fields, the header has {len(header)}."
        if separator == ";":
            raise DataError(what, "Quote fields that contain a ';', or separate all of them by commas.")
        raise RowError(what, "Quote fields that contain the separator.")
    if fields == header or [fields[0].removeprefix(BOM), *fields[1:]] == header:
        raise RowError(f"{where} is the header again.", "Remove it: files were put together with theirs.")
    return dict(zip(header, _texts(fields, where)))


def _texts(fields: list[str], where: str) -> list[str]:
    if not all(map(is_utf8, fields)):
        raise RowError(f"{where} is not UTF-8 text.", "Save the file as UTF-8.")
    return fields
