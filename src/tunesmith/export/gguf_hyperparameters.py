"""What llama.cpp must know of a model beside its weights and tokenizer, for bases that did not come as GGUF.

Keys are those of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. What llama.cpp takes for granted in a family is
checked, not written.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import ModelError
from tunesmith.export.families import WHOLE

ROPE_TYPES = {"default": WHOLE, "linear": WHOLE, "yarn": WHOLE, "llama3": ("llama", "mistral"), "longrope": ("phi3",)}
"""transformers' ways to stretch rotary embeddings, and the families in which llama.cpp knows them."""
YARN_OF_ITS_OWN = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")
"""What YaRN's paper fixes and llama.cpp takes for granted."""


def add_hyperparameters(writer: Any, model: Any) -> None:
    """Add sizes, norm, rotary and window settings of a transformers model to a GGUFWriter.

    Raises:
        ModelError: the family, or something in this model, is not what llama.cpp computes.
    """
    config = model.config
    _check(config)
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", None) or heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(model.get_input_embeddings().weight.shape[0])
    window = getattr(config, "sliding_window", None)
    # Some versions of llama.cpp take a Phi-3 without the key for one of the first, with a window; others heed no window.
    if window or config.model_type == "phi3":
        writer.add_sliding_window(window or 0)
    _add_rope(writer, config, model.model.rotary_emb)


def _check(config: Any) -> None:
    if config.model_type not in WHOLE:
        raise ModelError(
            f"A model of type {config.model_type} that did not come as GGUF cannot be written as one file here; "
            f"{', '.join(WHOLE)} can.",
            "Export the adapter alone (--type adapter), or `tunesmith merge` it and run llama.cpp's convert_hf_to_gguf.py on that.",
        )
    if config.hidden_act not in ("silu", "swish"):
        raise _not_computed(config, f"{config.hidden_act} in its MLP")
    rope = config.rope_parameters
    if config.model_type not in ROPE_TYPES.get(rope["rope_type"], ()):
        raise _not_computed(config, f"rotary embeddings of type {rope['rope_type']}")
    if rope["rope_type"] == "yarn" and (odd := [f"{key} {rope[key]}" for key in YARN_OF_ITS_OWN if rope.get(key) is not None]):
        raise _not_computed(config, f"rotary embeddings of type yarn with {odd[0]}")


def _not_computed(config: Any, what: str) -> ModelError:
    return ModelError(
        f"This {config.model_type} has {what}, and llama.cpp computes otherwise.",
        "Use `tunesmith merge` for transformers and vLLM.",
    )


def _add_rope(writer: Any, config: Any, rotary: Any) -> None:
    from gguf import RopeScalingType

    rope = config.rope_parameters
    kind = rope["rope_type"]
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(2 * len(rotary.inv_freq))
    original = rope.get("original_max_position_embeddings") or config.max_position_embeddings
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if kind in ("yarn", "longrope"):
        writer.add_rope_scaling_orig_ctx_len(original)
    if kind == "longrope":
        writer.add_rope_scaling_attn_factors(rotary.attention_scaling)


def rope_tensors(model: Any) -> dict[str, NDArray[Any]]:
    """Names and values, fp32 ``[head_dim / 2]``, of what each rotary frequency is divided by, where frequencies are not all
    treated alike."""
    rope: dict[str, Any] = getattr(model.config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        return {f"rope_factors_{which}.weight": np.array(rope[f"{which}_factor"], np.float32) for which in ("long", "short")}
    if rope.get("rope_type") != "llama3":
        return {}
    turned = model.model.rotary_emb.inv_freq.double().cpu().numpy()
    plain = rope["rope_theta"] ** (-np.arange(len(turned)) / len(turned))
    return {"rope_freqs.weight": (plain / turned).astype(np.float32)}
