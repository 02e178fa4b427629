"""Whether what serving needs is installed: nothing here needs it."""

import sys
from importlib.util import find_spec

from tunesmith.errors import MachineError

PACKAGES = ("fastapi", "starlette", "uvicorn")


def check_extra() -> None:
    """Raises MachineError if what serving needs is not installed."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise MachineError(
            f"`tunesmith serve` needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed.",
            f"{sys.executable} -m pip install {' '.join(PACKAGES)}",
        )
