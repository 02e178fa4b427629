"""Files that are something else than their names say, told by how they begin."""

from pathlib import Path

from tunesmith.errors import DataError

UNPACK = "Unpack it, or compress it with gzip."
EXPORT = "Save it as CSV (UTF-8) in the program you made it with."
FETCH = "Fetch the file itself: on the hub its address has /resolve/ where the page's has /blob/."
SIGNATURES = (
    (b"\x1f\x8b", "compressed with gzip", "Call it {name}.gz."),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", UNPACK),
    *((b"BZh%d1AY" % size, "compressed with bzip2", UNPACK) for size in range(1, 10)),
    (b"\xfd7zXZ", "compressed with xz", UNPACK),
    (b"\x04\x22\x4d\x18", "compressed with lz4", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "Unpack it."),
    (b"PK\x03\x04", "a zip archive, as spreadsheets (.xlsx, .ods) are", f"Unpack it; of a spreadsheet: {EXPORT}"),
    (b"\xd0\xcf\x11\xe0", "a spreadsheet or document of old Office programs", EXPORT),
    (b"PAR1\x15", "parquet", "Call it {stem}.parquet."),
    (b"ARROW1\0", "an Arrow file", "Write it as parquet."),
    (b"SQLite format 3", "a SQLite database", "Write its rows into a file."),
    (b"version https://git-lfs.github.com/spec/", "a pointer of Git LFS in the place of the rows", "Fetch them: git lfs pull"),
    (b"<!doctype html", "a web page", FETCH),
    (b"<html", "a web page", FETCH),
)  # fmt: skip
"""How such a file begins, in lower case if it is text; what it is; and what to do. name, stem: of the file."""
LONGEST = max(len(begin) for begin, _, _ in SIGNATURES)
UNREAD = {
    **dict.fromkeys((".zst", ".bz2", ".xz", ".lz4"), UNPACK), **dict.fromkeys((".zip", ".7z"), "Unpack it."),
    **dict.fromkeys((".xlsx", ".xls"), EXPORT), ".arrow": "Write it as parquet.",
}  # fmt: skip
"""Endings of files that may well hold rows and cannot be read, and what to do with such a file."""


def check_signature(path: Path, begin: bytes) -> None:
    """Raises DataError if a file begins as one of another kind does. begin: its first `LONGEST` bytes, unpacked if its name says
    that it is compressed."""
    for signature, what, fix in SIGNATURES:
        if begin.startswith(signature) or begin.lower().startswith(signature):
            raise DataError(f"{path} is {what}, whatever its name says.", fix.format(name=path.name, stem=path.stem))
