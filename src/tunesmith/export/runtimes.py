"""Which runtimes can load an adapter as it is, how, and if not, why.

What vLLM takes is what its `PEFTHelper` checks (https://docs.vllm.ai/en/latest/api/vllm/lora/peft_helper/) and the ranks its
`LoRAConfig` allows (https://docs.vllm.ai/en/stable/api/vllm/config/lora/); what Ollama takes is in its Modelfile reference
(https://docs.ollama.com/modelfile); what llama.cpp takes is what `export.gguf` writes and `tests/export` loads with it.
"""

import json
import shlex
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import AdapterError
from tunesmith.export.families import ARCHITECTURES, WHOLE
from tunesmith.export.ollama import modelfile_command

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What --max-lora-rank can be."""
VLLM_RANK = 16
"""What it is unless one says otherwise."""
TEMPLATE, GENERATION = "chat_template.jinja", "generation_config.json"
"""How the model was asked in training, and where its answers end, which its base may do otherwise."""


@dataclass(frozen=True)
class Runtime:
    """why: what it lacks if it cannot, or what to know. lines: commands or Python that use it, empty if nothing does."""

    name: str
    loads: bool
    why: str
    lines: tuple[str, ...]
    language: str = "bash"

    def __str__(self) -> str:
        why = f": {self.why}" if self.why and not self.loads else ""
        return f"{self.name} {'yes' if self.loads else 'no'}{why}"


@dataclass(frozen=True)
class Shipped:
    """An adapter as its users meet it. where: hub id or folder. base: hub id of its base, None if it is on no hub. base_name:
    what to call the base then. family: transformers' model_type, None if unknown. gguf: whether the base came as GGUF. files: names
    of what says beside it how it is asked and where answers end: TEMPLATE, GENERATION."""

    where: str
    config: dict[str, Any]
    base: str | None
    base_name: str
    family: str | None
    gguf: bool
    files: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """What to call the adapter itself."""
        return Path(self.where).name or "adapter"

    @property
    def whole(self) -> bool:
        """Whether it can be exported as one model with its base."""
        return self.gguf or self.family in WHOLE


def read_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json. Raises AdapterError if it is not one."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{folder}/adapter_config.json cannot be read: {error}.", "Mend the file.") from error
    if not isinstance(config, dict):
        raise AdapterError(f"{folder}/adapter_config.json holds no object.", "Mend the file.")
    return config


def runtimes(adapter: Shipped) -> tuple[Runtime, ...]:
    """transformers, vLLM, llama.cpp and Ollama, in this order."""
    return _transformers(adapter), _vllm(adapter), _llama_cpp(adapter), _ollama(adapter)


def compatibility(adapter: Shipped) -> str:
    """All of them in a line."""
    return " · ".join(map(str, runtimes(adapter)))


def _transformers(adapter: Shipped) -> Runtime:
    base = adapter.base or adapter.base_name
    ends = GENERATION in adapter.files
    lines = (
        "from peft import PeftModel",
        f"from transformers import AutoModelForCausalLM, AutoTokenizer{', GenerationConfig' if ends else ''}",
        "",
        f"model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base!r}), {adapter.where!r})",
        *([f"model.generation_config = GenerationConfig.from_pretrained({adapter.where!r})"] if ends else []),
        f"tokenizer = AutoTokenizer.from_pretrained({adapter.where!r})",
    )
    return Runtime("transformers", True, _own_copy(adapter), lines, "python")


def _vllm(adapter: Shipped) -> Runtime:
    rank, lacks = rank_of(adapter.config), not_for_vllm(adapter.config, adapter.gguf and adapter.base is None)
    if lacks:
        return Runtime("vLLM", False, f"{listed(lacks)}; merge it (tunesmith merge) and serve the merged model", ())
    room = f" --max-lora-rank {next(r for r in VLLM_RANKS if r >= rank)}" if rank > VLLM_RANK else ""
    base = shlex.quote(adapter.base or adapter.base_name)
    told = vllm_told(adapter.files, Path(_folder(adapter)))
    module = shlex.quote(f"{adapter.name}={_folder(adapter) if told else adapter.where}")
    served = " ".join([f"vllm serve {base} --enable-lora{room} --lora-modules {module}", *map(shlex.quote, told)])
    return Runtime("vLLM", True, _own_copy(adapter), (*(_get(adapter) if told else ()), served))


def _llama_cpp(adapter: Shipped) -> Runtime:
    get, file = _get(adapter), shlex.quote(f"{adapter.name}.gguf")
    lacks = _no_gguf(adapter)
    if lacks:
        whole = (*get, f"tunesmith export {_here(adapter)} {file}", f"llama-cli -m {file}") if adapter.whole else ()
        return Runtime("llama.cpp", False, f"{listed(lacks)}; {_whole_model(adapter)}", whole)
    made = f"tunesmith export {_here(adapter)} {file} --type adapter"
    template = shlex.quote(str(Path(_folder(adapter), TEMPLATE)))
    told = f" --jinja --chat-template-file {template}" if TEMPLATE in adapter.files else ""
    used = f"llama-cli -m BASE.gguf --lora {file}{told}"
    return Runtime("llama.cpp", True, "over a GGUF file of the base", (*get, made, used))


def _ollama(adapter: Shipped) -> Runtime:
    get, name, file = _get(adapter), shlex.quote(adapter.name), shlex.quote(f"{adapter.name}.gguf")
    lacks, created = _no_gguf(adapter), f"ollama create {name} -f Modelfile"
    if adapter.whole:
        made = f"tunesmith export {_here(adapter)} {file} --ollama"
        why = f"{listed(lacks)}; as one model it does" if lacks else "as one model with its base"
        return Runtime("Ollama", not lacks, why, (*get, made, created))
    if lacks:
        return Runtime("Ollama", False, f"{listed(lacks)}; {_whole_model(adapter)}", ())
    made = f"tunesmith export {_here(adapter)} {file} --type adapter"
    written = modelfile_command("BASE.gguf", f"{adapter.name}.gguf")
    return Runtime("Ollama", True, "over a GGUF file of the base", (*get, made, written, created))


def vllm_told(files: Container[str], folder: Path) -> list[str]:
    """The options that make vLLM ask as in training and stop where answers end: by itself it does as the base says. files: names
    of what the adapter's folder holds."""
    return [
        *(["--chat-template", str(folder / TEMPLATE)] if TEMPLATE in files else []),
        *(["--generation-config", str(folder)] if GENERATION in files else []),
    ]


def not_for_vllm(config: dict[str, Any], gguf: bool) -> list[str]:
    """Why vLLM cannot put an adapter of this config on its base itself. gguf: the base is a GGUF file and nothing else."""
    rank, lacks = rank_of(config), [*(["the base is a GGUF file"] if gguf else []), *_special(config), *_patterns(config)]
    return [*lacks, f"rank {rank} is more than the {VLLM_RANKS[-1]} it can hold"] if rank > VLLM_RANKS[-1] else lacks


def _own_copy(adapter: Shipped) -> str:
    return "" if adapter.base else f"the base, {adapter.base_name}, is on no hub: put your own copy in its place"


def _get(adapter: Shipped) -> tuple[str, ...]:
    """The line that fetches it, if it is on the hub."""
    return () if _is_local(adapter) else (f"hf download {shlex.quote(adapter.where)} --local-dir {_here(adapter)}",)


def _here(adapter: Shipped) -> str:
    return shlex.quote(_folder(adapter))


def _folder(adapter: Shipped) -> str:
    """Where it lies on its user's machine, once fetched."""
    return adapter.where if _is_local(adapter) else adapter.name


def _is_local(adapter: Shipped) -> bool:
    return Path(adapter.where).is_dir() or adapter.where.count("/") != 1


def _whole_model(adapter: Shipped) -> str:
    if adapter.whole:
        return "export it as one model with its base (tunesmith export)"
    return "merge it (tunesmith merge) and convert the merged model (convert_hf_to_gguf.py)"


def _no_gguf(adapter: Shipped) -> list[str]:
    """Why it has no place in a GGUF adapter file."""
    lacks = _special(adapter.config)
    if adapter.family is not None and adapter.family not in ARCHITECTURES:
        lacks.append(f"models of type {adapter.family} have no GGUF names here")
    return [*lacks, *_patterns(adapter.config)]


def _special(config: dict[str, Any]) -> list[str]:
    """What makes an adapter more than plain LoRA."""
    lacks = []
    if config.get("peft_type", "LORA") != "LORA":
        lacks.append(f"it is {config['peft_type']}, not LoRA")
    if config.get("use_dora"):
        lacks.append("DoRA")
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        lacks.append("trained biases")
    if config.get("modules_to_save"):
        lacks.append(f"layers trained as a whole ({', '.join(map(str, config['modules_to_save']))})")
    if config.get("trainable_token_indices"):
        lacks.append("trained tokens")
    return lacks


def _patterns(config: dict[str, Any]) -> list[str]:
    return ["layers of different rank or scale"] if config.get("alpha_pattern") or config.get("rank_pattern") else []


def rank_of(config: dict[str, Any]) -> int:
    """The rank of its matrices."""
    rank = config.get("r")
    return rank if isinstance(rank, int) and not isinstance(rank, bool) and rank > 0 else 8


def listed(items: Sequence[str]) -> str:
    """With commas."""
    return ", ".join(items)
