"""An adapter's ``adapter_config.json``, whoever wrote it: read as plain values, each checked, before peft acts on any.

peft would import a module that the file names (``auto_mapping``, ``megatron_core``), search with any pattern and make an
adapter of any rank. Here only what describes a LoRA adapter is taken over.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tunesmith.errors import AdapterError

LONGEST = 2**20
"""Bytes of the file."""
_NESTED = re.compile(r"[*+}]\??[^()]*\)\??[*+{]")
"""A repetition of what repeats itself: such a pattern may search for years."""


def is_called(name: str, target: str) -> bool:
    """Whether a target of an adapter, a name or the end of one, means the module of this full name (as in peft)."""
    return name == target or name.endswith("." + target)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9 and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**20


def _is_pattern(value: Any) -> bool:
    if not isinstance(value, str) or len(value) > 4000 or _NESTED.search(value):
        return False
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _is_list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: check(value) or (isinstance(value, list) and len(value) < 10_000 and all(map(check, value)))


def _is_map_to(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(_is_pattern(key) and check(item) for key, item in value.items())


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _one_of(*known: Any) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (str, bool)) and value in known


_NAMES = _is_list_of(_is_pattern)
CHECKS: dict[str, Callable[[Any], bool]] = {
    "r": lambda value: _is_count(value) and value > 0,
    "lora_alpha": _is_number,
    "lora_dropout": lambda value: _is_number(value) and 0 <= value < 1,
    "bias": _one_of("none", "all", "lora_only"),
    "target_modules": _NAMES,
    "exclude_modules": _NAMES,
    "modules_to_save": _NAMES,
    "layers_pattern": _NAMES,
    "target_parameters": _NAMES,
    "layers_to_transform": _is_list_of(_is_count),
    "rank_pattern": _is_map_to(lambda value: _is_count(value) and value > 0),
    "alpha_pattern": _is_map_to(_is_number),
    "init_lora_weights": _one_of(True, False, "gaussian"),
    **dict.fromkeys(("fan_in_fan_out", "use_rslora", "use_dora", "lora_bias", "ensure_weight_tying"), _is_flag),
    "base_model_name_or_path": lambda value: isinstance(value, str) and len(value) < 1000,
    "revision": lambda value: isinstance(value, str) and len(value) < 1000,
}
"""Settings that describe an adapter, and what their values may be; null is always left at peft's default."""
OF_NO_EFFECT = {"peft_type", "task_type", "peft_version", "inference_mode", "auto_mapping", "megatron_core", "qalora_group_size"}
"""Settings that are there and not read: who wrote it, for what, and what other settings would need."""


def read_adapter_config(folder: Path, rank: int) -> Any:
    """The ``LoraConfig`` of a folder.

    Args:
        rank: the largest in its tensors; the config may not tell of more.

    Raises:
        AdapterError: it is not JSON, not LoRA, or a setting is of a wrong kind or one that changes what LoRA is.
    """
    from peft import LoraConfig

    path = folder / "adapter_config.json"
    told = _read(path)
    if told.get("peft_type") != "LORA":
        raise AdapterError(f"{folder} holds an adapter of another kind than LoRA: {_short(told.get('peft_type'))}.", "Use LoRA.")
    plain = LoraConfig().to_dict()
    taken: dict[str, Any] = {}
    for name, value in told.items():
        if value is None or name in OF_NO_EFFECT or name not in plain:
            continue
        check = CHECKS.get(name, lambda value, usual=plain[name]: not value or value == usual)
        if not check(value):
            raise AdapterError(
                f"{path}: {name} is {_short(value)}, which no plain LoRA adapter has.", "Use an adapter that peft's LoRA saved."
            )
        if name in CHECKS:
            taken[name] = value
    largest = max([taken.get("r", 0), *taken.get("rank_pattern", {}).values()])
    if largest > rank:
        raise AdapterError(f"{path} tells of rank {largest}, and its tensors are of rank {rank}.", "Copy the adapter again.")
    try:
        return LoraConfig(task_type="CAUSAL_LM", **taken)
    except (TypeError, ValueError) as error:  # settings that exclude one another
        raise AdapterError(f"{path} holds settings that peft refuses: {_short(str(error))}.", "Copy the adapter again.") from error


def rank_of(tensors: Mapping[str, Any]) -> int:
    """The largest rank among an adapter's tensors."""
    return max([t.shape[0] for name, t in tensors.items() if re.search(r"lora_(embedding_)?A", name) and t.dim()], default=0)


def _read(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file() or path.stat().st_size > LONGEST:
            raise ValueError("it is no file, or too large for what it should be")
        told = json.loads(path.read_bytes().decode("utf-8"))
        if not isinstance(told, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(
            f"{path} holds no readable LoRA adapter: {_short(str(error))}", "Use a finished run's folder."
        ) from error
    return told


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) < 100 else f"{text[:100]}…"
