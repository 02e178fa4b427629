"""Files for llama.cpp and what is built on it: an adapter alone, or the merged model, as GGUF.

A merged file takes its metadata (tokenizer, rotary settings, sizes) from the GGUF file the base came from, so that nothing is
lost or guessed; where there is none, from the model and its tokenizer. Weights are those of `merge`. Names of tensors are the
`gguf` package's own.
"""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tunesmith.base.adapter import ADAPTER
from tunesmith.errors import AdapterError, ModelError
from tunesmith.export.families import ARCHITECTURES
from tunesmith.export.gguf_hyperparameters import add_hyperparameters, rope_tensors
from tunesmith.export.gguf_vocabulary import STOPS, add_vocabulary, stop_tokens
from tunesmith.export.merge import Merged, Watch, check_room, merged_tensors

PERMUTED = {"llama", "granite"}
"""Architectures whose rotary turns neighbouring numbers: rows of q and k stand in another order than in transformers."""


def write_adapter(peft_model: Any, out: Path) -> None:
    """Write the adapter alone, to be used beside a GGUF file of its base (``llama-cli --lora``).

    Raises:
        AdapterError: the family has no GGUF architecture, or the adapter is of a kind llama.cpp does not know.
    """
    import gguf

    base = peft_model.get_base_model()
    names = _Names(base.config)
    layers = {path: m for path, m in base.named_modules() if hasattr(m, "lora_A") and ADAPTER in m.lora_A}
    if any(module.lora_variant or any(module.lora_bias.values()) for module in layers.values()):
        raise AdapterError("llama.cpp knows plain LoRA only, not DoRA or biases.", "Export the merged model instead.")
    scaled = {round(module.scaling[ADAPTER] * module.r[ADAPTER], 6) for module in layers.values()}
    if len(scaled) != 1:
        raise AdapterError("Layers of this adapter have different scales, and the file has one.", "Export the merged model.")
    writer = gguf.GGUFWriter(out, names.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, scaled.pop())
    for path, module in layers.items():
        A, B = (getattr(module, which)[ADAPTER].weight.detach().float().cpu().numpy() for which in ("lora_A", "lora_B"))
        name = names.of(f"{path}.weight")
        writer.add_tensor(f"{name}.lora_a", np.ascontiguousarray(A))
        writer.add_tensor(f"{name}.lora_b", np.ascontiguousarray(names.ordered(path, B)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_model(
    peft_model: Any, tokenizer: Any, stop_ids: list[int], base_file: Path | None, out: Path, kind: str, watch: Watch,
    merge: bool = True,
) -> None:  # fmt: skip
    """Write the merged model.

    Args:
        tokenizer: with the template it was trained with. stop_ids: tokens that end an answer, the usual one first. base_file: the
            GGUF file the base came from, whose metadata is taken over; None if it came otherwise. kind: of matrices: f16, q8_0
            or f32; vectors are fp32. merge: False for the base alone, as training saw it.

    Raises:
        ModelError: the file is not of this model; or without one, llama.cpp has no word for something in it.
        AdapterError: the family has no GGUF architecture. MachineError: the disk has too little room.
    """
    import gguf

    base = peft_model.get_base_model()
    names = _Names(base.config)
    writer = gguf.GGUFWriter(out, names.architecture)
    parts = {names.of(key): (key, shape, make) for key, shape, make in merged_tensors(peft_model, merge)}
    parts |= {name: (name, values.shape, partial(torch.from_numpy, values)) for name, values in rope_tensors(base).items()}
    if base_file is not None:
        _take_over(base_file, writer, tokenizer, stop_ids, set(parts))
    else:
        add_hyperparameters(writer, base)
        add_vocabulary(writer, tokenizer, base.get_input_embeddings().weight.shape[0], stop_ids)
    writer.add_file_type(_file_type(kind))
    check_room(out.parent, sum(math.prod(shape) for _, shape, _ in parts.values()) * (4 if kind == "f32" else 2))
    _write_tensors(writer, parts, names, kind, watch)


def _write_tensors(writer: Any, parts: dict[str, Merged], names: "_Names", kind: str, watch: Watch) -> None:
    """Write header and metadata, then tensors (by GGUF's name) one by one, so that memory holds one of them."""
    import gguf

    for name, (_, shape, _) in parts.items():
        stored = _stored(kind, shape)
        bytes_shape = gguf.quants.quant_shape_to_byte_shape(shape, stored) if stored == gguf.GGMLQuantizationType.Q8_0 else shape
        dtype = {"F16": np.float16, "F32": np.float32}.get(stored.name, np.uint8)
        writer.add_tensor_info(name, bytes_shape, np.dtype(dtype), int(np.prod(bytes_shape)) * np.dtype(dtype).itemsize, stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for done, (key, shape, make) in enumerate(parts.values(), 1):
        values = names.ordered(key.removesuffix(".weight"), make().float().cpu().numpy())
        writer.write_tensor_data(gguf.quants.quantize(np.ascontiguousarray(values), _stored(kind, shape)))
        watch(done, len(parts))
    writer.close()


def _take_over(base_file: Path, writer: Any, tokenizer: Any, stop_ids: list[int], names: set[str]) -> None:
    """Metadata of the file the base came from, but for the template and the stop tokens, which are those that were trained."""
    import gguf

    reader = gguf.GGUFReader(base_file)
    plain = {tensor.name for tensor in reader.tensors if tensor.name == "rope_freqs.weight" and (tensor.data == 1).all()}
    strange = {tensor.name for tensor in reader.tensors} - names - plain
    if strange:
        raise ModelError(f"{base_file} has {min(strange)}, and the merged model has not.", "Export from the run's own base.")
    own = ("GGUF.", "general.architecture", "general.quantization_version", "general.file_type", "quantize.", "split.")
    given = {key: reader.fields[key].contents() for key in STOPS if key in reader.fields}
    settings = {"tokenizer.chat_template": tokenizer.chat_template, **stop_tokens(stop_ids, given)}
    for field in reader.fields.values():
        if not field.name.startswith(own):
            kind, inner = field.types[0], field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, settings.pop(field.name, field.contents()), kind, sub_type=inner)
    for name, value in settings.items():
        (writer.add_string if isinstance(value, str) else writer.add_uint32)(name, value)


def _stored(kind: str, shape: tuple[int, ...]) -> Any:
    """The type a tensor is stored in: vectors and what blocks of 32 do not divide are kept wider."""
    from gguf import GGMLQuantizationType as Type

    if len(shape) < 2:
        return Type.F32
    return {"f16": Type.F16, "f32": Type.F32, "q8_0": Type.Q8_0 if shape[-1] % 32 == 0 else Type.F16}[kind]


def _file_type(kind: str) -> int:
    from gguf import LlamaFileType

    return int({"f16": LlamaFileType.MOSTLY_F16, "f32": LlamaFileType.ALL_F32, "q8_0": LlamaFileType.MOSTLY_Q8_0}[kind])


class _Names:
    """Names and order of rows of a family's tensors in GGUF."""

    def __init__(self, config: Any) -> None:
        import gguf

        text = config.get_text_config()
        if config.model_type not in ARCHITECTURES:
            raise AdapterError(
                f"Models of type {config.model_type} have no way to GGUF here; {', '.join(ARCHITECTURES)} have.",
                "Use `tunesmith merge` and llama.cpp's own converter.",
            )
        self.architecture = ARCHITECTURES[config.model_type]
        number = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == self.architecture)
        self.map = gguf.get_tensor_name_map(number, text.num_hidden_layers)
        self.heads = text.num_attention_heads
        self.key_heads = getattr(text, "num_key_value_heads", None) or self.heads
        self.given: dict[str, str] = {}

    def of(self, key: str) -> str:
        """GGUF's name of a tensor. Raises AdapterError if it has none of its own."""
        name: str | None = self.map.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise AdapterError(f"{key} has no name in a GGUF file of architecture {self.architecture}.", "Use `tunesmith merge`.")
        if (other := self.given.setdefault(name, key)) != key:
            raise AdapterError(
                f"{key} and {other} have one name in a GGUF file, {name}: one would be lost.", "Use `tunesmith merge`."
            )
        return name

    def ordered(self, path: str, rows: NDArray[Any]) -> NDArray[Any]:
        """Rows of q and k in GGUF's order: halves of a head become neighbours."""
        leaf = path.removesuffix(".bias").rsplit(".", 1)[-1]
        if self.architecture not in PERMUTED or leaf not in ("q_proj", "k_proj"):
            return rows
        heads = self.heads if leaf == "q_proj" else self.key_heads
        return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
