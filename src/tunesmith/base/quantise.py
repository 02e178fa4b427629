"""Where weights are quantised: on a GPU, also those that will live in host memory.

A GPU quantises a model in the time it takes to send it there, a CPU takes ten times as long, and the two round some weights to
different neighbours.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import bitsandbytes as bnb
import torch

_LOADING = threading.Lock()


@contextmanager
def quantise_on(device: torch.device) -> Iterator[None]:
    """Within this block bitsandbytes quantises 4-bit weights on ``device``, one at a time, and brings each to where it is
    wanted. bitsandbytes itself knows one device for both (``Params4bit._quantize``, 0.50). One thread at a time.

    Raises:
        torch.OutOfMemoryError: there was no room for that, which transformers would tell as damaged weights.
    """
    parameter, ran_out = bnb.nn.Params4bit, list[torch.OutOfMemoryError]()

    def quantise(self: Any, home: Any) -> Any:
        try:
            made = plain(self, device)
        except torch.OutOfMemoryError as error:
            ran_out.append(error)
            raise
        made.data = made.data.to(home)
        made.quant_state.to(home)
        return made

    with _LOADING:
        plain = parameter._quantize
        parameter._quantize = quantise
        try:
            yield
        except Exception:
            if ran_out:
                raise ran_out[0] from None
            raise
        finally:
            parameter._quantize = plain
