"""Where weights are quantised: on a GPU, also those that will live in host memory.

A GPU quantises a model in the time it takes to send it there, a CPU takes ten times as long, and the two round some weights to
different neighbours.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import bitsandbytes as bnb
import torch


@contextmanager
def quantise_on(device: torch.device) -> Iterator[None]:
    """Within this block bitsandbytes quantises 4-bit weights on ``device``, one at a time, and brings each to where it is
    wanted. bitsandbytes itself knows one device for both (``Params4bit._quantize``, 0.45 … 0.50)."""
    parameter = bnb.nn.Params4bit
    plain = parameter._quantize

    def quantise(self: Any, home: Any) -> Any:
        made = plain(self, device)
        made.data = made.data.to(home)
        made.quant_state.to(home)
        return made

    parameter._quantize = quantise
    try:
        yield
    finally:
        parameter._quantize = plain
