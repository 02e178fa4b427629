"""The type torch takes where nobody says one, which a process may have set to bf16."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def fp32_by_default() -> Iterator[None]:
    """Within this block, or function, that type is fp32: bitsandbytes would round NF4's levels, and peft what it draws."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
