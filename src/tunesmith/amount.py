"""Amounts of memory as people write them."""

import re

_AMOUNT = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>[KMG]i?|)B?", re.IGNORECASE)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def parse_bytes(text: str) -> int:
    """Bytes of ``6GB``, ``500 MB``, ``1.5GiB`` or a plain number; a GB is 10⁹ of them, a GiB 2³⁰.

    Raises:
        ValueError: the text is no amount.
    """
    match = _AMOUNT.fullmatch(text.strip())
    if match is None:
        raise ValueError("is not an amount of memory such as 6GB or 500MB")
    return int(float(match["number"]) * _UNITS[match["unit"].upper()])
