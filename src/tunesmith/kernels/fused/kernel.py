"""Triton kernels that several threads may compile and launch at the same time.

Triton hands a compiled kernel out before its module is loaded, and while it is being loaded there is a launcher but no
function yet (3.6 … 3.9, ``CompiledKernel._init_handles``): a thread that launches it then fails. So loading has a lock here,
which launching takes too; what takes long is done before.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import triton

from tunesmith.kernels.fused.launchers import build_launcher

_LOADING = threading.RLock()
_THREAD = threading.local()


class Kernel:
    """What ``kernel`` makes of a function: ``function[grid](*arguments)`` launches it."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        compiles = getattr(_THREAD, "compiles", False) and isinstance(self.function, triton.JITFunction)
        return partial(self._compile if compiles else self._launch, grid)

    def _launch(self, grid: Any, *arguments: Any, **options: Any) -> None:
        with _LOADING:
            self.function[grid](*arguments, **options)

    def _compile(self, grid: Any, *arguments: Any, **options: Any) -> None:
        compiled = self.function.run(*arguments, grid=grid, warmup=True, **options)
        build_launcher(compiled)
        with _LOADING:
            _ = compiled.run  # loads it


def kernel(**settings: Any) -> Callable[[Callable[..., Any]], Kernel]:
    """As ``triton.jit``, with its settings, for a function that the host launches."""
    return lambda function: Kernel(triton.jit(**settings)(function))


@contextmanager
def compile_only() -> Iterator[None]:
    """Within this block kernels that this thread calls are compiled and loaded, not launched: what they would have written
    is not there. Triton's interpreter, which compiles nothing, runs them."""
    before = getattr(_THREAD, "compiles", False)
    _THREAD.compiles = True
    try:
        yield
    finally:
        _THREAD.compiles = before
