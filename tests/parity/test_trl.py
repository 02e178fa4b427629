"""Same model, rows, order and settings as trl: the same losses step by step and the same adapter at the end."""

import copy

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model_state_dict
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from tunesmith.base.adapter import attach
from tunesmith.base.lean import speed_up
from tunesmith.data.formats import Conversation, Message
from tunesmith.data.loader import Loader
from tunesmith.data.packing import plan_rows
from tunesmith.data.render import Renderer, cut
from tunesmith.recipe import Recipe
from tunesmith.training.loop import train
from tunesmith.training.step import choose_loss

PAIRS = [
    ("the birch canoe slid", "slid, the birch canoe did"),
    ("we must go home before dark", "go home before dark, we must"),
    ("she is kind", "kind, she is"),
    ("the cup of tea is on the old table", "on the old table, the cup of tea is"),
    ("you have found the key", "found the key, you have"),
    ("rain fell on the roof all night", "on the roof all night, rain fell"),
    ("close the door", "the door, close"),
    ("they will not wait for us", "wait for us, they will not"),
] * 3
# Nothing follows the stop token: trl trains what a template writes after it, tunesmith does not.
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STEPS, LENGTH, BATCH, RATE = 6, 32, 3, 1e-3
EPSILON = 1e-6  # Adam divides by the gradient's size: at 1e-8 it would blow up the rounding of gradients that are nearly zero


@pytest.fixture
def tokenizer(tiny_tokenizer):
    own = copy.deepcopy(tiny_tokenizer)
    own.chat_template = TEMPLATE
    return own


def adapted(folder, recipe):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").requires_grad_(False)
    return model, attach(model, recipe, str(folder), None)


def ours(folder, tokenizer, packing, assistant_only, accumulation):
    recipe = Recipe.of(
        {
            "load_in_4bit": False, "lora_dropout": 0.0, "packing": packing, "max_length": LENGTH, "shuffle": False,
            "max_steps": STEPS,
            "per_device_train_batch_size": BATCH, "gradient_accumulation_steps": accumulation, "learning_rate": RATE,
            "adam_epsilon": EPSILON,
        }
    )  # fmt: skip
    base, model = adapted(folder, recipe)
    speed_up(model, torch.float32, True)
    loss_of, path = choose_loss(base)
    assert path.startswith("flat")
    conversations = [Conversation((Message("user", a), Message("assistant", b)), f"row {a}") for a, b in PAIRS]
    examples = Renderer(tokenizer, assistant_only).examples(conversations)
    if packing == "none":
        examples = [e for e in cut(examples, LENGTH)[0] if e.trained]
    loader = Loader(plan_rows(examples, packing, LENGTH), BATCH, accumulation, shuffle=False)
    losses = [report.loss for report in train(model, loss_of, loader, recipe, RATE)]
    return losses, get_peft_model_state_dict(model)


def theirs(folder, tokenizer, packing, assistant_only, accumulation, where):
    _, model = adapted(folder, Recipe.of({"load_in_4bit": False, "lora_dropout": 0.0}))
    rows = [{"prompt": [{"role": "user", "content": a}], "completion": [{"role": "assistant", "content": b}]} for a, b in PAIRS]
    arguments = SFTConfig(
        output_dir=str(where), max_length=LENGTH, packing=packing == "wrapped", packing_strategy="wrapped", max_steps=STEPS,
        completion_only_loss=assistant_only, per_device_train_batch_size=BATCH, gradient_accumulation_steps=accumulation,
        learning_rate=RATE, adam_epsilon=EPSILON, lr_scheduler_type="linear", optim="adamw_torch", logging_steps=1,
        report_to="none", save_strategy="no",
        use_cpu=True, bf16=False, gradient_checkpointing=False, train_sampling_strategy="sequential",
    )  # fmt: skip
    trainer = SFTTrainer(model=model, processing_class=tokenizer, args=arguments, train_dataset=Dataset.from_list(rows))
    trainer.train()
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    return losses, get_peft_model_state_dict(trainer.model)


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize(("packing", "assistant_only"), [("wrapped", False), ("wrapped", True), ("none", True)])
def test_losses_and_adapter_agree_with_trl(tiny_model_folder, tokenizer, tmp_path, packing, assistant_only, accumulation):
    mine, my_adapter = ours(tiny_model_folder, tokenizer, packing, assistant_only, accumulation)
    other, other_adapter = theirs(tiny_model_folder, tokenizer, packing, assistant_only, accumulation, tmp_path)
    assert len(mine) == len(other) == STEPS
    assert max(abs(a - b) for a, b in zip(mine, other)) <= 1e-5
    assert any(bool(value.any()) for name, value in my_adapter.items() if "lora_B" in name)
    my_weights, other_weights = (torch.cat([t[name].flatten() for name in my_adapter]) for t in (my_adapter, other_adapter))
    assert torch.linalg.vector_norm(my_weights - other_weights) / torch.linalg.vector_norm(other_weights) <= 1e-5
