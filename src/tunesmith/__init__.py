"""tunesmith: fine-tune a chat model on your own examples, on the machine you have."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tunesmith.hub_client import check_environment

if TYPE_CHECKING:
    from tunesmith.api import Run, compare, load, resume, train
    from tunesmith.ship import export_gguf, merge, push

__version__ = "0.1.0"
__all__ = ["Run", "compare", "export_gguf", "load", "merge", "push", "resume", "train"]
_AFTER_TRAINING = ("export_gguf", "merge", "push")


def __getattr__(name: str) -> Any:
    """The verbs, imported when they are first used: `import tunesmith` itself loads no torch."""
    if name in __all__:
        check_environment()
        return getattr(import_module("tunesmith.ship" if name in _AFTER_TRAINING else "tunesmith.api"), name)
    raise AttributeError(f"module 'tunesmith' has no attribute {name!r}")
