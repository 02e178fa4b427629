"""tunesmith: fine-tune a chat model on your own examples, on the machine you have."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.api import Run, load, merge, train

__version__ = "0.1.0"
__all__ = ["Run", "load", "merge", "train"]


def __getattr__(name: str) -> Any:
    """The verbs, imported when they are first used: `import tunesmith` itself loads no torch."""
    if name in __all__:
        return getattr(import_module("tunesmith.api"), name)
    raise AttributeError(f"module 'tunesmith' has no attribute {name!r}")
