"""Launchers, which Triton 3.4 … 3.6 builds with a C compiler when it loads a kernel, half a second each.

Each is a C extension of one and the same module name. When CPython loads the file of one a second time, it hands out the module of
that name that was loaded last, filled anew: whoever is about to take a launcher from it may take another kernel's. So here every
load gets names of its own, and launchers can be built by several threads at once.
"""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import triton
from triton.runtime import build

MODULE = "__triton_launcher"
"""The name that they share."""
_LOADING = threading.Lock()


def build_launcher(compiled: Any) -> None:
    """Build the launcher of a compiled kernel into Triton's cache, from where it is loaded in no time."""
    if hasattr(build, _LOAD):
        triton.runtime.driver.active.launcher_cls(compiled.src, compiled.metadata)


def _apart(load: Callable[..., Any]) -> Callable[..., Any]:
    """``load(name, path)`` with an object of its own for each launcher."""

    def load_apart(name: str, *where: Any) -> Any:
        if name != MODULE:
            return load(name, *where)
        with _LOADING:
            return SimpleNamespace(**vars(load(name, *where)))

    return load_apart


_LOAD = "_load_module_from_path"
if hasattr(build, _LOAD):
    setattr(build, _LOAD, _apart(getattr(build, _LOAD)))
