"""What a soak counted: told, and where SOAK_RESULTS names a file (`make soak`), added to it as a line."""

import importlib.metadata
import json
import os
from datetime import date
from pathlib import Path
from typing import Any


def record(test: str, **counts: Any) -> None:
    """test: what was done. counts: how often, and with what result."""
    versions = {name: importlib.metadata.version(name) for name in ("tunesmith", "torch", "transformers", "peft", "bitsandbytes")}
    line = json.dumps({"date": date.today().isoformat(), "test": test, **counts, "versions": versions})
    print(line)
    if place := os.environ.get("SOAK_RESULTS"):
        with Path(place).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
