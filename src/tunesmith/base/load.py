"""Load the base model: NF4 with double quantisation, 8 bits, or as it is, in the type this device computes well."""

import os
import shutil
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch

from tunesmith.base.catalog import ModelSource
from tunesmith.base.default_dtype import fp32_by_default
from tunesmith.base.hub_model import not_given
from tunesmith.base.quantise import quantise_on
from tunesmith.base.quantised import copy_of, store
from tunesmith.base.stream import stream_layers
from tunesmith.errors import MachineError, ModelError
from tunesmith.recipe import Recipe

LINEARS = (torch.nn.Linear, bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ComputeType:
    """device to run on, dtype to compute in, and why these. here: whether this machine has the device."""

    device: torch.device
    dtype: torch.dtype
    reason: str
    here: bool = True


def choose_compute(recipe: Recipe, elsewhere: bool = False) -> ComputeType:
    """Device and compute type: what the device has units for, never what it would emulate.

    Args:
        elsewhere: nothing will be computed: if there is no GPU here and the recipe says how much memory one has, it is meant.

    Raises:
        MachineError: a GPU is asked for and there is none.
    """
    cuda = torch.cuda.is_available()
    if recipe.device == "cuda" and not cuda:
        if elsewhere and recipe.memory_bytes:
            auto = recipe.dtype == "auto"
            dtype, why = (torch.bfloat16, "taken to have bf16 units") if auto else (DTYPES[recipe.dtype], "as asked for")
            return ComputeType(torch.device("cuda"), dtype, f"a GPU that is not here, {why}", here=False)
        other = ", or say how much memory the GPU has that is meant: --memory 24GB" if elsewhere else ""
        raise MachineError(
            "device is cuda, but PyTorch sees no GPU here.", f"Use --device cpu, or install a CUDA build of torch{other}."
        )
    device = torch.device("cuda" if cuda and recipe.device != "cpu" else "cpu")
    if recipe.dtype != "auto":
        return ComputeType(device, DTYPES[recipe.dtype], "asked for")
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return ComputeType(device, torch.bfloat16, "this GPU has bf16 units")
        return ComputeType(device, torch.float16, "this GPU has no bf16 units; the loss is scaled, the adapter stays in fp32")
    if _cpu_has_bf16():
        return ComputeType(
            device, torch.float32, "fp32 is exact, and this CPU is fast enough at it; --dtype bfloat16 for its bf16 units"
        )
    return ComputeType(device, torch.float32, "this CPU has no bf16 units; bf16 would be several times slower")


def _cpu_has_bf16() -> bool:
    capabilities = torch.backends.cpu.get_cpu_capability()
    return "AMX" in capabilities or bool(torch.cpu._is_avx512_bf16_supported())


@fp32_by_default()
def load_model(source: ModelSource, recipe: Recipe, compute: ComputeType) -> Any:
    """The frozen base model on its device, in eval mode.

    Raises:
        ModelError: not found, not a causal language model, remote code, or it stayed unquantised.
        MachineError: out of memory while loading.
    """
    stream = recipe.offload_base == "always" and compute.device.type == "cuda"
    device = torch.device("cpu") if stream else compute.device
    copy = copy_of(source, recipe, compute.dtype, compute.device.type)
    model = _from_copy(copy, source, recipe, compute, device) if copy is not None else None
    if model is None:
        model = _from_pretrained(source.path, source, recipe, compute, device)
        if copy is not None:
            store(model, copy)
    for module in model.modules():
        # On CPUs with AVX512-BF16 bitsandbytes repacks weights at the first evaluation, in a layout nothing else reads.
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    if stream:
        stream_layers(model, compute.device)
    return model


def _from_copy(copy: Path, source: ModelSource, recipe: Recipe, compute: ComputeType, device: torch.device) -> Any:
    """The model from its 4-bit copy, or None if there is none; a damaged one is removed."""
    if not (copy / "config.json").is_file():
        return None
    try:
        model = _from_pretrained(str(copy), source, recipe, compute, device)
    except ModelError:
        shutil.rmtree(copy, ignore_errors=True)
        return None
    os.utime(copy)  # used last now
    return model


def _from_pretrained(path: str, source: ModelSource, recipe: Recipe, compute: ComputeType, device: torch.device) -> Any:
    """The frozen model at ``path``, which is the source or a copy of it, in the memory of ``device``."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), quantise_on(compute.device):
            warnings.filterwarnings("ignore", message=".*already has a `quantization_config`")  # of a copy, and the same
            model, loading = AutoModelForCausalLM.from_pretrained(
                path,
                revision=source.revision if path == source.path else None,
                dtype=compute.dtype,
                device_map={"": device},
                quantization_config=quantization(recipe, compute.dtype),
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise MachineError(
            f"{source.base} does not fit into this machine's memory.", "Take a smaller model, or `--load-in-4bit true`."
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if "allocate memory" in str(error):  # torch's CPU allocator has no error class of its own
            raise MachineError(f"{source.base} does not fit into this machine's memory.", "Take a smaller model.") from error
        raise model_error(source, error) from error
    _check_complete(loading["missing_keys"], source)
    model.requires_grad_(False)
    model.eval()
    if recipe.load_in_4bit or recipe.load_in_8bit:
        _check_quantised(model, source)
    return model


def quantization(recipe: Recipe, dtype: torch.dtype) -> Any:
    """The bitsandbytes configuration the recipe asks for, or None."""
    from transformers import BitsAndBytesConfig

    if recipe.load_in_4bit:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=recipe.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=recipe.bnb_4bit_use_double_quant,
            bnb_4bit_compute_dtype=dtype,
        )
    return BitsAndBytesConfig(load_in_8bit=True) if recipe.load_in_8bit else None


def model_error(source: ModelSource, error: Exception) -> ModelError:
    """What went wrong with a model, in the user's terms."""
    text = str(error)
    first = text.splitlines()[0] if text else type(error).__name__
    if "trust_remote_code" in text or "custom code" in text:
        return ModelError(
            f"{source.base} needs Python code from its own repository, which tunesmith never runs.",
            "Use a model of a family that transformers contains.",
        )
    if "safetensors" in text and ("does not appear to have" in text or "Error no file named" in text):
        return ModelError(
            f"{source.base} has no .safetensors weights; pickled ones can run any code when opened.",
            "Take another copy or revision of the model.",
        )
    if isinstance(error, OSError):
        if Path(source.path).is_dir():
            return ModelError(f"{source.base} cannot be read: {first.rstrip('.')}.", "Mend the file, or download the model again.")
        return not_given(source, first)
    if "safetensors" in type(error).__module__ or isinstance(error, RuntimeError):
        return ModelError(
            f"{source.base} cannot be loaded: its weights are damaged or of another model ({first})", "Download it again."
        )
    return ModelError(f"{source.base} cannot be loaded: {first}", "Use a causal language model in the transformers format.")


def decoder_linears(model: Any) -> dict[str, torch.nn.Module]:
    """Every linear layer by its full name, the output head aside. Quantised linears are linears too; other subclasses
    (routers, FP8 layers) compute something else."""
    head = model.get_output_embeddings()
    return {name: m for name, m in model.named_modules() if type(m) in LINEARS and m is not head}


def weight_bytes(model: Any) -> dict[str, int]:
    """Bytes of parameters and buffers by type; 4-bit weights are those stored packed, two to a byte."""
    count: Counter[str] = Counter()
    for parameter in model.parameters():
        kind = type(parameter).__name__
        name = {"Params4bit": "4-bit", "Int8Params": "8-bit"}.get(kind, str(parameter.dtype).removeprefix("torch."))
        count[name] += parameter.nelement() * parameter.element_size()
    for buffer in model.buffers():
        count[str(buffer.dtype).removeprefix("torch.")] += buffer.nelement() * buffer.element_size()
    return dict(count)


def quantised_share(model: Any) -> float:
    """Share of the decoder's linear weights that is stored in 4 or 8 bits."""
    kinds = {"Params4bit", "Int8Params"}
    total = quantised = 0
    for linear in decoder_linears(model).values():
        weights = int(linear.in_features) * int(linear.out_features)  # type: ignore[arg-type]
        total += weights
        quantised += weights if type(linear.weight).__name__ in kinds else 0
    return quantised / total if total else 0.0


def _check_complete(missing_keys: Iterable[str], source: ModelSource) -> None:
    missing = sorted(missing_keys)
    if missing:  # transformers fills them at random
        raise ModelError(
            f"{source.base} cannot be loaded: its weights miss {missing[0]} and {len(missing) - 1} more.",
            "Download the model again.",
        )


def _check_quantised(model: Any, source: ModelSource) -> None:
    share = quantised_share(model)
    stray = _unquantised_bytes(model)
    if share < 0.9 or stray > 0.5:
        raise ModelError(
            f"{source.base} was to be quantised, but only {share:.0%} of its linear weights are, and {stray:.0%} of all decoder "
            "weights stayed as they were (fused experts, for one, cannot be quantised).",
            "Load it as it is with `--load-in-4bit false`, if memory allows.",
        )


def _unquantised_bytes(model: Any) -> float:
    """Share of the decoder's weights, embeddings aside, that is stored in 16 or 32 bits."""
    embeddings = {id(m.weight) for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None}
    plain = total = 0
    for parameter in model.parameters():
        if id(parameter) in embeddings or parameter.dim() < 2:
            continue
        packed = type(parameter).__name__ == "Params4bit"
        count = parameter.nelement() * (2 if packed else 1)
        total += count
        plain += 0 if packed or type(parameter).__name__ == "Int8Params" else count
    return plain / total if total else 0.0
