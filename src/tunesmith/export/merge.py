"""Adapter and base made one model: the base's weights as training saw them, dequantised, with the adapter's change added.

Merging into the original weights would give another model than the one that was trained and looked at, since the adapter has
learnt to make up for the rounding to 4 bits too. Matrices are merged one by one and written layer by layer, so that memory
holds the quantised model and one layer more.
"""

import copy
import json
import math
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.base.adapter import ADAPTER
from tunesmith.base.disk import share
from tunesmith.errors import AdapterError, MachineError
from tunesmith.export.generation_config import write_generation_config

SHARD_BYTES = 2 * 10**9
"""Layers are gathered into files of about this size."""
Watch = Callable[[int, int], None]


def write_merged(peft_model: Any, folder: Path, dtype: torch.dtype, stop_ids: list[int], watch: Watch = lambda a, b: None) -> None:
    """Write config and weights of the merged model into ``folder``, which exists and is empty.

    Args:
        dtype: of the weights written. stop_ids: tokens that end an answer, for generation_config.json. watch: told how many
            layers of how many are done.

    Raises:
        AdapterError: the adapter holds something that no single weight can hold.
        MachineError: the disk has too little room.
    """
    base = peft_model.get_base_model()
    tensors = list(merged_tensors(peft_model))
    check_room(folder, sum(_bytes(tensor, dtype) for tensor in tensors))
    _write_shards(tensors, folder, dtype, watch)
    config = copy.deepcopy(base.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = dtype
    config.save_pretrained(folder)
    write_generation_config(base, stop_ids, folder)


Merged = tuple[str, tuple[int, ...], Callable[[], Tensor]]
"""A tensor's name and shape, and what makes its values."""


def merged_tensors(peft_model: Any, merge: bool = True) -> Iterator[Merged]:
    """Name, shape and, when called, values of every tensor of the merged model (or of its base alone), tied ones once."""
    for key, module, name in _parts(peft_model.get_base_model()):
        holder = module if merge or not hasattr(module, "get_base_layer") else module.get_base_layer()
        yield key, _shape(holder, name), partial(_merged, holder, name)


def check_room(folder: Path, needed: int) -> None:
    """Raises MachineError if the disk of ``folder`` has less than so many bytes, and a little, free."""
    free = shutil.disk_usage(folder).free
    if free < 1.05 * needed:
        raise MachineError(
            f"The file takes {needed / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB free.",
            "Free some space, or write to another disk.",
        )


def compute_type(model: Any) -> torch.dtype:
    """The type a model computes in."""
    return model.get_input_embeddings().weight.dtype


def open_merged(folder: Path, like: Any) -> Any:
    """The merged model as transformers opens it, on the device and in the compute type of another one."""
    from transformers import AutoModelForCausalLM

    device, dtype = next(like.parameters()).device, compute_type(like)
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, device_map={"": device}, use_safetensors=True, trust_remote_code=False
    ).eval()


Part = tuple[str, Any, str]
"""Name in the merged model, the module that holds it, and what it is called there."""


def _parts(base: nn.Module) -> Iterator[Part]:
    """Every tensor of the merged model, tied ones once, in the order of the model."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    seen: set[int] = set()
    inside: list[str] = []
    for path, module in base.named_modules():
        if any(path.startswith(layer) for layer in inside):
            continue
        if isinstance(module, ModulesToSaveWrapper):
            raise AdapterError(f"The adapter trained {path} as a whole, which cannot be merged here.", "Keep it as an adapter.")
        holder = module
        if isinstance(module, BaseTunerLayer):
            inside.append(path + ".")
            holder = module.get_base_layer()
        named = [*holder.named_parameters(recurse=False), *holder.named_buffers(recurse=False)]
        for name, tensor in named:
            if name in getattr(holder, "_non_persistent_buffers_set", ()) or tensor.data_ptr() in seen:
                continue
            seen.add(tensor.data_ptr())
            yield f"{path}.{name}" if path else name, module, name


def _shape(module: Any, name: str) -> tuple[int, ...]:
    holder = module.get_base_layer() if hasattr(module, "get_base_layer") else module
    if name == "weight" and hasattr(holder, "in_features"):  # a 4-bit weight is packed
        return (holder.out_features, holder.in_features)
    return tuple(getattr(holder, name).shape)


def _bytes(tensor: Merged, dtype: torch.dtype) -> int:
    return dtype.itemsize * math.prod(tensor[1])


@torch.no_grad()
def _merged(module: Any, name: str) -> Tensor:
    """One tensor of the merged model, in fp32 if it is a matrix that an adapter changes."""
    from peft.tuners.lora import LoraLayer
    from peft.utils.integrations import dequantize_module_weight

    adapted = hasattr(module, "get_base_layer")
    holder = module.get_base_layer() if adapted else module
    if name != "weight":
        return getattr(holder, name).detach()
    weight = dequantize_module_weight(holder).detach()
    if not adapted:
        return weight
    if not isinstance(module, LoraLayer) or any(module.lora_bias.values()):
        raise AdapterError(f"{type(module).__name__} is no adapter that can be merged.", "Keep it as an adapter.")
    weight = weight.float()
    variant = module.lora_variant.get(ADAPTER)
    if variant is not None:
        return variant.merge_safe(module, ADAPTER, weight)
    return weight + module.get_delta_weight(ADAPTER).float()


def _write_shards(tensors: list[Merged], folder: Path, dtype: torch.dtype, watch: Watch) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    shards, size = [list[Merged]()], 0
    for tensor in tensors:
        if size and size + _bytes(tensor, dtype) > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += _bytes(tensor, dtype)
    done, weight_map = 0, {}
    for number, shard in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        made = {}
        for name, _, make in shard:
            made[name], weight_map[name] = make().to("cpu", dtype).contiguous(), file
            done += 1
            watch(done, len(tensors))
        try:
            save_file(made, folder / file, metadata={"format": "pt"})
            share(folder / file)
        except SafetensorError as error:  # a disk that became full, among others
            raise MachineError(
                f"{folder / file} could not be written: {error}.", "Free some space, or write to another disk."
            ) from error
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(_bytes(tensor, dtype) for tensor in tensors)}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
