"""The adapter folder: files that plain peft and transformers read, written whole or not at all."""

import json
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

from tunesmith.base.adapter import ADAPTER
from tunesmith.base.disk import share, sync
from tunesmith.export.generation_config import write_generation_config


def save_adapter(peft_model: Any, tokenizer: Any, stop_ids: list[int], folder: Path) -> None:
    """Write adapter_config.json, adapter_model.safetensors, tokenizer, chat template and generation_config.json into ``folder``.

    Each file is written beside its place, flushed to disk and renamed, the weights last. No pickle is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-") as made:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # save_embedding_layers would ask the hub about the base model; embeddings are never trained here.
            peft_model.save_pretrained(made, selected_adapters=[ADAPTER], save_embedding_layers=False)
        _sort_targets(Path(made) / "adapter_config.json")
        tokenizer.save_pretrained(made)
        write_generation_config(peft_model, stop_ids, Path(made))
        share(Path(made) / "adapter_model.safetensors")
        files = sorted(Path(made).iterdir(), key=lambda p: p.suffix == ".safetensors")
        for file in files:
            if file.name != "README.md":  # peft's card; the run writes its own
                sync(file)
                os.replace(file, folder / file.name)
    sync(folder)


def _sort_targets(path: Path) -> None:
    """peft writes a set, in another order each time: the same run would have another hash."""
    config = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
