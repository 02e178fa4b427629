"""Plan: what a run will take here, and which way to run it was chosen."""

from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.base.load import ComputeType
from tunesmith.data.packing import Pack
from tunesmith.plan.memory import Memory, Shape, available_bytes, predict_memory
from tunesmith.plan.speed import SHARE_OF_STEP, flops, measure_flops
from tunesmith.recipe import Recipe

PROCESS_BYTES = 1024 * 2**20
"""Python, torch and transformers themselves, before any weight (measured resident size)."""


@dataclass(frozen=True)
class Plan:
    """keep: whether dequantised weights are kept. memory: predicted bytes at the peak, the process itself included.
    available: bytes free now. seconds: predicted training time. reason: why this way."""

    keep: bool
    memory: Memory
    available: int
    seconds: float
    reason: str

    @property
    def bytes(self) -> int:
        return self.memory.total + PROCESS_BYTES


def make_plan(shape: Shape, recipe: Recipe, compute: ComputeType, packs: Sequence[Pack], updates: int) -> Plan:
    """The plan for training ``updates`` updates on epochs like ``packs`` (one epoch, in order)."""
    size = compute.dtype.itemsize
    largest = max(len(pack.input_ids) for pack in packs)
    available = available_bytes(compute.device)
    kept = predict_memory(shape, recipe, largest, size, keep=True)
    lean = predict_memory(shape, recipe, largest, size, keep=False)
    if recipe.dequantize != "auto":
        keep, reason = recipe.dequantize == "always", "asked for"
    elif not recipe.load_in_4bit:
        keep, reason = True, "the weights are not in 4 bits, so nothing is dequantised"
    elif kept.total + PROCESS_BYTES < 0.8 * available:
        keep, reason = True, "memory allows, and the numbers are the same"
    else:
        keep, reason = False, "kept copies would not fit"
    inputs = sum(len(pack.input_ids) for pack in packs)
    labels = sum(len(pack.targets) for pack in packs)
    per_epoch = flops(shape, inputs, labels, recipe.gradient_checkpointing)
    rate = measure_flops(compute.device, compute.dtype, shape.hidden) * SHARE_OF_STEP
    epochs = updates * recipe.gradient_accumulation_steps / len(packs)
    return Plan(keep, kept if keep else lean, available, per_epoch * epochs / rate, reason)
