"""Plan: the ways to run a training here, what each will take, and which was chosen."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.base.load import ComputeType
from tunesmith.data.packing import Pack
from tunesmith.data.sizes import LABELS, STEP, Ladder
from tunesmith.errors import MachineError
from tunesmith.kernels.fused.attention_tiles import can_rotate, choose_block, largest_block
from tunesmith.kernels.fused_attention import MAX_ROTATED_INSIDE
from tunesmith.plan.gpu_memory import predict_gpu_memory
from tunesmith.plan.machine import available_bytes
from tunesmith.plan.memory import Memory, Shape, predict_memory
from tunesmith.plan.speed import UNSEEN, Speed, measure_speed, step_seconds
from tunesmith.plan.way import Way, ways
from tunesmith.recipe import Recipe

PROCESS_BYTES = 1024 * 2**20
"""Python, torch and transformers themselves, before any weight (measured resident size); on a GPU they take nothing that
torch counts."""
SHARE_USED = {"cpu": 0.8, "cuda": 0.95}
"""Of free memory: a CPU's is shared with all else that runs there."""


@dataclass(frozen=True)
class Row:
    """One way to run. memory: predicted bytes at the peak. process: bytes of the process besides. seconds: predicted training
    time. fits: within the memory there is."""

    way: Way
    memory: Memory
    process: int
    seconds: float
    fits: bool

    @property
    def bytes(self) -> int:
        return self.memory.total + self.process


@dataclass(frozen=True)
class Plan:
    """chosen: the way this run will take. rows: all ways the recipe leaves open. available: bytes that may be used.
    reason: why this way. fits: whether one of them is sure to."""

    chosen: Row
    rows: tuple[Row, ...]
    available: int
    reason: str

    @property
    def fits(self) -> bool:
        return self.chosen.fits

    @property
    def keep(self) -> bool:
        return self.chosen.way.keep

    @property
    def memory(self) -> Memory:
        return self.chosen.memory

    @property
    def bytes(self) -> int:
        return self.chosen.bytes

    @property
    def seconds(self) -> float:
        return self.chosen.seconds


def make_plan(
    shape: Shape, recipe: Recipe, compute: ComputeType, packs: Sequence[Pack], updates: int, per_update: float | None = None
) -> Plan:
    """The plan for training ``updates`` updates on packs like these: of the ways that fit, the fastest; of ways equally
    fast, the first.

    Args:
        recipe: with every default filled in; what it leaves at auto is decided here.
        per_update: packs an update; the recipe's gradient_accumulation_steps unless prefixes that are shared make it fewer.

    Raises:
        MachineError: what the recipe asks for contradicts itself or this machine.
    """
    available = recipe.memory_bytes or available_bytes(compute.device)
    room = available if recipe.memory_bytes else SHARE_USED[compute.device.type] * available
    speed = measure_speed(compute.device, compute.dtype, shape.hidden) if compute.here else UNSEEN
    per_update = per_update or recipe.gradient_accumulation_steps
    rows = []
    for way in ways(recipe, compute.device.type == "cuda"):
        memory, process = _memory(shape, recipe, compute, packs, way)
        seconds = updates * _update_seconds(shape, per_update, packs, way, speed, compute.dtype.itemsize)
        rows.append(Row(way, memory, process, seconds, memory.total + process <= room))
    if not rows:
        raise MachineError(
            "There is no way to run this as asked: streaming the base and keeping activations in host memory need a GPU, 4-bit "
            "weights that are not kept, and recomputation.",
            "Leave offload_base, activation_offloading, dequantize and gradient_checkpointing at auto.",
        )
    fitting = [row for row in rows if row.fits]
    if not fitting:
        chosen = min(rows, key=lambda row: row.bytes)
        return Plan(chosen, tuple(rows), available, "nothing is sure to fit: this takes least")
    chosen = min(fitting, key=lambda row: row.seconds)
    reason = "the fastest" if chosen == min(rows, key=lambda row: row.seconds) else "the fastest that fits"
    reason += "" if compute.here else ", going by its arithmetic"
    return Plan(chosen, tuple(rows), available, "the only way asked for" if len(rows) == 1 else reason)


def _memory(shape: Shape, recipe: Recipe, compute: ComputeType, packs: Sequence[Pack], way: Way) -> tuple[Memory, int]:
    size = compute.dtype.itemsize
    if compute.device.type == "cuda":
        tokens, labels = _padded(packs, *_micro_batch(recipe, packs, way), way)
        inside = compute.here and _rotates_inside(packs[0], shape, compute)  # as all do: the first decides
        return predict_gpu_memory(shape, recipe, tokens, labels, size, way, inside), 0
    tokens, _ = _micro_batch(recipe, packs, way)
    return predict_memory(shape, way.of(recipe), tokens, size, way.keep), PROCESS_BYTES


def _micro_batch(recipe: Recipe, packs: Sequence[Pack], way: Way) -> tuple[int, int]:
    """The most tokens and labels of one."""
    tokens, labels = max(len(pack.input_ids) for pack in packs), max(len(pack.targets) for pack in packs)
    if way.split == 1:
        return tokens, labels
    assert recipe.per_device_train_batch_size is not None
    assert recipe.max_length is not None
    most = recipe.per_device_train_batch_size // way.split * recipe.max_length
    return min(tokens, most), min(labels, most)


def _padded(packs: Sequence[Pack], tokens: int, labels: int, way: Way) -> tuple[int, int]:
    """What a GPU pads such a micro-batch to. Of split ones, whose packs are not made yet, a whole rung more, but for tokens
    of documents that are alike."""
    if way.split == 1:
        sizes = [Ladder.through(packs[0]).sizes(pack) for pack in packs]
        return max(each.tokens for each in sizes), max(each.labels for each in sizes)
    alike = len({length for pack in packs for length in pack.segments.lengths}) == 1
    return tokens if alike else math.ceil(tokens * (1 + STEP)), math.ceil(labels * (1 + LABELS * STEP))


def _rotates_inside(pack: Pack, shape: Shape, compute: ComputeType) -> bool:
    """Whether the attention kernels will rotate this pack's queries and keys themselves."""
    largest = largest_block(shape.rotary_width, compute.dtype, compute.device)
    if not largest or max(pack.segments.lengths) > MAX_ROTATED_INSIDE:
        return False
    block = choose_block(pack.segments.lengths, pack.segments.parents, largest)
    return can_rotate(block, shape.rotary_width, compute.dtype, compute.device)


def _update_seconds(shape: Shape, per_update: float, packs: Sequence[Pack], way: Way, speed: Speed, size: int) -> float:
    """Mean time of one update."""
    tokens = sum(len(pack.input_ids) for pack in packs) / len(packs) * per_update
    labels = sum(len(pack.targets) for pack in packs) / len(packs) * per_update
    return step_seconds(shape, tokens, labels, way, speed, size, per_update * way.split)
