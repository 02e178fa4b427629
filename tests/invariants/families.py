"""Tiny random models of the families whose layers take the fast path, and documents to train them on."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tunesmith.base.adapter import attach
from tunesmith.data.render import Example
from tunesmith.recipe import Recipe

SMALL = {
    "vocab_size": 120, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "initializer_range": 0.2,
}  # fmt: skip
FAMILIES = {
    "llama": {},
    "mistral": {"sliding_window": 6},
    "qwen2": {},
    "qwen3": {},
    "phi3": {"sliding_window": 7},
    "gemma2": {"query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0, "sliding_window": 5},
    "gemma3_text": {"query_pre_attn_scalar": 8, "sliding_window": 5},
    "olmo2": {},
    "granite": {"logits_scaling": 4.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2},
}


def tiny(family):
    """A causal language model in fp32, the same at each call."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SMALL, **FAMILIES[family]))


def build(family, dtype=torch.float64, device="cpu"):
    """The model, and the same with an adapter attached."""
    model = tiny(family).to(device, dtype).requires_grad_(False).eval()
    return model, attach(model, Recipe.of({"load_in_4bit": False, "lora_dropout": 0.0}), "x", None)


def documents():
    generator = torch.Generator().manual_seed(1)
    draw = lambda n: torch.randint(3, 120, (n,), generator=generator).tolist()  # noqa: E731
    prefix, other = draw(9), draw(8)
    made = []
    for length in (4, 9, 5, 12, 3):
        ids = prefix + draw(length)
        made.append(Example(ids, [-100] * 7 + ids[7:], "shared, trained from inside the prefix"))
    for length in (6, 2):
        ids = other + draw(length)
        made.append(Example(ids, [-100] * len(other) + ids[len(other) :], "another prefix"))
    alone = draw(11)
    made.append(Example(alone, list(alone), "alone, all trained"))
    return made
