"""generation_config.json: where answers end, as the model was taught. transformers and vLLM stop at what it names, not at what the
tokenizer or the chat template would say; a base that knows nothing of the template's stop token would write on for ever."""

import copy
from pathlib import Path
from typing import Any

from tunesmith.base.adapter import without_adapter


def write_generation_config(model: Any, stop_ids: list[int], folder: Path) -> None:
    """Write the base's own settings with these stop tokens; nothing if the base has none, which then writes no text.

    Args:
        model: a causal language model, with an adapter or without. stop_ids: tokens that end an answer.
    """
    config = getattr(without_adapter(model), "generation_config", None)
    if config is None:
        return
    config = copy.deepcopy(config)
    config.eos_token_id = stop_ids
    # Not by save_pretrained: it refuses what the bases of some models say, a temperature without do_sample.
    config.to_json_file(folder / "generation_config.json", use_diff=True)
