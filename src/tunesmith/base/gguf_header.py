"""Whether a GGUF file's header tells of what is in the file, before anything that trusts it reads it.

The format: magic, version, count of tensors, count of facts; each fact a key, a type and a value; each tensor a name,
dimensions, a type and an offset into the data behind (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

import math
import struct
from pathlib import Path
from typing import BinaryIO

from tunesmith.errors import ModelError

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value by its type; 8 is text, 9 a list."""
TEXT, LIST = 8, 9
MOST_TENSORS, MOST_FACTS, MOST_DIMENSIONS = 2**17, 2**16, 4


class _BadError(Exception):
    """What is wrong with the header."""


def check_gguf(file: Path) -> None:
    """Read the header and compare every length in it with the file's.

    Raises:
        ModelError: it is not GGUF, or tells of more than the file holds. OSError: the file cannot be read.
    """
    with file.open("rb") as opened:
        try:
            _Header(opened, file.stat().st_size).check()
        except _BadError as bad:
            raise ModelError(f"{file} is not a whole GGUF file: {bad}.", "Download it again.") from bad


class _Header:
    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size

    def check(self) -> None:
        if self._read(4) != b"GGUF":
            raise _BadError("it does not begin with GGUF")
        version = self._number("<I")
        if version not in (2, 3):
            raise _BadError(f"its version is {version}, not 2 or 3")
        tensors, facts = self._count(MOST_TENSORS, "tensors"), self._count(MOST_FACTS, "facts")
        alignment = 32
        for _ in range(facts):
            key, kind = self._text(), self._number("<I")
            if key == b"general.alignment" and kind == 4:
                alignment = self._number("<I")
                if not 0 < alignment <= 2**16 or alignment & (alignment - 1):
                    raise _BadError(f"its alignment is {alignment}")
            else:
                self._pass_value(kind)
        ends = [self._tensor() for _ in range(tensors)]
        begins = -(-self.file.tell() // alignment) * alignment
        if ends and begins + max(ends) > self.size:
            raise _BadError(f"it has {self.size:,} bytes, and its tensors would need {begins + max(ends):,}")

    def _pass_value(self, kind: int) -> None:
        if kind == TEXT:
            self._text()
        elif kind == LIST:
            inner, count = self._number("<I"), self._number("<Q")
            if inner == TEXT:
                if count * 8 > self.size:
                    raise _BadError(f"it lists {count:,} texts")
                for _ in range(count):
                    self._text()
            else:
                self._skip(count * self._size_of(inner))
        else:
            self._skip(self._size_of(kind))

    def _tensor(self) -> int:
        """Where the tensor's data ends, in bytes from where all data begin."""
        import gguf

        name, dimensions = self._text(), self._number("<I")
        if not 0 < dimensions <= MOST_DIMENSIONS:
            raise _BadError(f"a tensor has {dimensions:,} dimensions")
        shape = [self._number("<Q") for _ in range(dimensions)]
        kind, offset = self._number("<I"), self._number("<Q")
        try:
            block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            raise _BadError(f"the tensor {name.decode(errors='replace')!r} is of the unknown type {kind}") from None
        return offset + math.prod(shape) * size // block

    def _count(self, most: int, what: str) -> int:
        count = self._number("<Q")
        if count > most:
            raise _BadError(f"it tells of {count:,} {what}")
        return count

    def _text(self) -> bytes:
        return self._read(self._number("<Q"))

    def _number(self, form: str) -> int:
        number: int = struct.unpack(form, self._read(struct.calcsize(form)))[0]
        return number

    def _read(self, count: int) -> bytes:
        if count > self.size - self.file.tell():
            raise _BadError("it ends within its header")
        return self.file.read(count)

    def _skip(self, count: int) -> None:
        if count > self.size - self.file.tell():
            raise _BadError("it ends within its header")
        self.file.seek(count, 1)

    def _size_of(self, kind: int) -> int:
        if kind not in SIZES:
            raise _BadError(f"a value is of the unknown type {kind}")
        return SIZES[kind]
