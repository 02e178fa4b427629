"""What a GGUF file says of a model and transformers leaves out when it reads one: the size of heads, windows, biases, and how
rotary embeddings are stretched. Without it, another model would be trained than the file holds. (llama.cpp itself leaves Phi-3's
window out: beyond it, it answers otherwise than the original.)

Keys are those of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import ModelError

FAMILIES = ("llama", "mistral", "phi3", "qwen2", "qwen3")
"""Types of models whose configs are completed; others are as transformers reads them."""
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""How all Llamas from 3.1 on stretch rotary embeddings, the factor apart. Files hold what comes of it only."""


class Facts:
    """What a GGUF file says. tensors: what it holds, by name."""

    def __init__(self, file: Path) -> None:
        import gguf

        reader = gguf.GGUFReader(file)
        self.file, self._fields = file, reader.fields
        self.tensors: dict[str, Any] = {tensor.name: tensor for tensor in reader.tensors}
        self._architecture = reader.fields["general.architecture"].contents()

    def get(self, key: str) -> Any:
        """The value of a key of the file's architecture, None if there is none."""
        field = self._fields.get(f"{self._architecture}.{key}")
        return None if field is None else field.contents()

    def say(self, beginning: str) -> bool:
        """Whether there are keys that begin so."""
        return any(key.startswith(f"{self._architecture}.{beginning}") for key in self._fields)

    def vector(self, name: str) -> NDArray[Any] | None:
        """An fp32 tensor of one dimension."""
        return np.array(self.tensors[name].data, np.float32) if name in self.tensors else None


def completed(config: Any, facts: Facts) -> Any:
    """A config that transformers read from a GGUF file, with what else the file says.

    Raises:
        ModelError: its rotary embeddings are of a kind that is not known here.
    """
    if config.model_type not in FAMILIES:
        return config
    changes: dict[str, Any] = {}
    usual = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    head = facts.get("attention.key_length") or usual
    if head != usual:
        changes["head_dim"] = head
    if config.model_type in ("phi3", "mistral"):
        changes["sliding_window"] = facts.get("attention.sliding_window") or None
    for key, tensor in (("attention_bias", "blk.0.attn_q.bias"), ("mlp_bias", "blk.0.ffn_up.bias")):
        if hasattr(config, key):
            changes[key] = tensor in facts.tensors
    rotated = facts.get("rope.dimension_count") or head
    if config.model_type == "phi3":
        changes["rope_parameters"] = config.rope_parameters | {"partial_rotary_factor": rotated / head}
    elif rotated != head:
        raise _unknown(facts, f"{rotated} of {head} numbers of a head are rotated")
    return _stretched(_with(config, changes), facts)


def _with(config: Any, changes: dict[str, Any]) -> Any:
    """Made anew, so that it is checked and brought into form as any config is."""
    return type(config)(**config.to_dict() | changes)


def _unknown(facts: Facts, what: str) -> ModelError:
    return ModelError(
        f"{facts.file} has rotary embeddings of a kind that is not known here: {what}.",
        "Use the model's folder of .safetensors files.",
    )


def _stretched(config: Any, facts: Facts) -> Any:
    """The config with the file's rotary embeddings. What the file does not say is what llama.cpp takes for granted then."""
    kind = facts.get("rope.scaling.type") or "linear"
    factor = facts.get("rope.scaling.factor") or facts.get("rope.scale_linear") or 1.0
    loudness = facts.get("rope.scaling.attn_factor") or 1.0
    original = facts.get("rope.scaling.original_context_length") or config.max_position_embeddings
    divisors, long, short = (facts.vector(f"rope_{which}.weight") for which in ("freqs", "factors_long", "factors_short"))
    _check_scaling(facts, kind, factor, loudness, long is not None and short is not None)
    if divisors is not None and (divisors != 1).any():
        made = _with_rope(config, **LLAMA3, factor=float(divisors.max()))
        if factor != 1 or not _divides_by(made, divisors):
            raise _unknown(facts, "rope_freqs.weight is not as in Llama 3")
        return made
    if long is not None and short is not None:
        factors = {"long_factor": long.tolist(), "short_factor": short.tolist(), "attention_factor": float(loudness)}
        return _with_rope(config, rope_type="longrope", **factors, original_max_position_embeddings=original)
    if kind == "yarn" and factor != 1:
        return _with_rope(config, rope_type=kind, factor=factor, original_max_position_embeddings=original)
    return _with_rope(config, rope_type=kind, factor=factor) if kind == "linear" and factor != 1 else config


def _check_scaling(facts: Facts, kind: str, factor: float, loudness: float, each: bool) -> None:
    """Raises ModelError for a kind that is not known. each: whether the file has a factor for each frequency."""
    if kind not in ("none", "linear", "yarn", "longrope") or (kind == "yarn" and facts.say("rope.scaling.yarn_")):
        raise _unknown(facts, f"rope.scaling.type is {kind}, and that in a way of its own")
    if kind == "longrope" and (factor != 1 or not each):
        raise _unknown(facts, "rope.scaling.type is longrope, and there is no rope_factors_long.weight or a factor besides")
    if loudness != 1 and not each:
        raise _unknown(facts, f"rope.scaling.attn_factor is {loudness}")


def _with_rope(config: Any, **rope: Any) -> Any:
    """The config with these settings of rotary embeddings, also where it has them beside, as Phi-3's the original length."""
    beside = {key: value for key, value in rope.items() if hasattr(config, key)}
    return _with(config, beside | {"rope_parameters": config.rope_parameters | rope})


def _divides_by(config: Any, divisors: NDArray[Any]) -> bool:
    """Whether the frequencies of a config's rotary embeddings are the plain ones divided by these."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = config.rope_parameters
    frequencies = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, "cpu")[0].double().numpy()
    plain = rope["rope_theta"] ** (-np.arange(len(frequencies)) / len(frequencies))
    return len(frequencies) == len(divisors) and bool(np.allclose(plain / frequencies, divisors, rtol=1e-3))
