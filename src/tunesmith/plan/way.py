"""The ways to run one training: all make the same updates, and differ in the memory and time they take."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tunesmith.recipe import Recipe


@dataclass(frozen=True)
class Way:
    """keep: dequantised weights are kept, not made anew at each use. recompute: activations are computed again in backward.
    host_activations: what backward needs waits in host memory. stream: the 4-bit base lies in host memory and comes layer
    by layer. split: each micro-batch is split in so many, with accumulation, so that the update stays the same."""

    keep: bool
    recompute: bool = False
    host_activations: bool = False
    stream: bool = False
    split: int = 1

    def __str__(self) -> str:
        parts = ["base streamed from the host" if self.stream else "weights kept" if self.keep else "dequantised at each use"]
        if self.recompute:
            parts.append("layers recomputed")
        if self.host_activations:
            parts.append("activations on the host")
        if self.split > 1:
            parts.append(f"micro-batch split in {self.split}")
        return ", ".join(parts)

    def of(self, recipe: Recipe) -> Recipe:
        """The recipe with this way written into it."""
        assert recipe.per_device_train_batch_size is not None
        return recipe.model_copy(
            update={
                "dequantize": "always" if self.keep else "never",
                "gradient_checkpointing": self.recompute,
                "activation_offloading": self.host_activations,
                "offload_base": "always" if self.stream else "never",
                "per_device_train_batch_size": recipe.per_device_train_batch_size // self.split,
                "gradient_accumulation_steps": recipe.gradient_accumulation_steps * self.split,
            }
        )


def ways(recipe: Recipe, on_gpu: bool) -> Iterator[Way]:
    """Every way the recipe leaves open, the fast ones first; settings the user named are kept to."""
    rungs = [Way(True), Way(False), Way(True, recompute=True), Way(False, recompute=True)]
    if on_gpu:
        rungs.append(Way(False, recompute=True, host_activations=True))
        rungs.append(Way(False, recompute=True, stream=True))
        rungs.append(Way(False, recompute=True, host_activations=True, stream=True))
    batch = recipe.per_device_train_batch_size
    assert batch is not None
    for split in (1, 2, 4, 8, 16, 32):
        if batch % split == 0:
            yield from (replace(rung, split=split) for rung in rungs if _allowed(rung, recipe))


def _allowed(way: Way, recipe: Recipe) -> bool:
    wanted = [
        (recipe.offload_base, way.stream, "always"),
        (recipe.gradient_checkpointing, way.recompute, True),
        (recipe.activation_offloading, way.host_activations, True),
    ]
    if recipe.load_in_4bit:
        wanted.append((recipe.dequantize, way.keep, "always"))
    elif way.stream or not way.keep:  # there is nothing to dequantise
        return False
    return all(asked == "auto" or (asked == yes) == chosen for asked, chosen, yes in wanted)
