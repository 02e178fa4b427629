"""Tiny random models of many families, made from their configurations alone."""

from typing import Any

import bitsandbytes as bnb
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from tunesmith.base.lean import speed_up
from tunesmith.base.linear import CUSTOM_MODULES

SIZES = {
    "vocab_size": 260, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.15, "head_dim": 16,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
WINDOW = {"sliding_window": 8}
"""Shorter than a prompt and its answer."""

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {**WINDOW, "query_pre_attn_scalar": 16, "final_logit_softcapping": 10.0, "attn_logit_softcapping": 5.0},
    "gemma3_text": {
        **WINDOW,
        "query_pre_attn_scalar": 16,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "mistral": WINDOW,
    "phi3": {**WINDOW, "num_key_value_heads": 4},
    "olmo2": {},
    "granite": {"logits_scaling": 4.0, "residual_multiplier": 0.7},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
}  # fmt: skip
PLAIN = {
    "phi3_long": "longest answer's length",
    "mamba": "attention",
    "lfm2": "layers",
}
"""Families that a static store does not serve, and a word of the reason."""
LONG = {
    "original_max_position_embeddings": 16, "num_key_value_heads": 4,
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8,
        "original_max_position_embeddings": 16, "factor": 2.0,
    },
}  # fmt: skip


def tiny(family: str) -> Any:
    """A causal language model of this family in fp32, the same at each call."""
    special = {
        "phi3_long": LONG,
        "mamba": {"state_size": 8, "num_heads": 4},
        "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
    }
    settings = {**SIZES, **FAMILIES.get(family, special.get(family, {}))}
    config = AutoConfig.for_model(family.removesuffix("_long"), **settings)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


TARGETS = {"mamba": ["in_proj"], "qwen3_moe": ["q_proj", "k_proj", "v_proj", "o_proj"]}
"""Where peft takes no adapter on every linear."""


def adapted(family: str, lean: bool, device: str = "cpu", four_bit: bool = False, keep: bool = True) -> Any:
    """A tiny model with a random adapter that changes what it says, on our layers or on peft's own."""
    model, target = tiny(family), TARGETS.get(family, "all-linear")
    if four_bit:
        quantise(model)
    model = model.to(device)
    config = LoraConfig(r=4, lora_alpha=16, target_modules=target, task_type="CAUSAL_LM", init_lora_weights=False)
    if lean:
        config._register_custom_module(CUSTOM_MODULES)
    torch.manual_seed(1)
    model = get_peft_model(model, config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.copy_(0.05 * torch.randn(parameter.shape))
    if lean:
        speed_up(model, torch.float32, keep=keep)
    return model


def quantise(model: Any) -> None:
    """Every linear of the decoder in NF4."""
    for parent in list(model.base_model.modules()):
        for name, layer in parent.named_children():
            if type(layer) is torch.nn.Linear:
                four = bnb.nn.Linear4bit(
                    layer.in_features, layer.out_features, bias=False, compute_dtype=torch.float32, quant_type="nf4"
                )
                four.load_state_dict(layer.state_dict())
                setattr(parent, name, four)
