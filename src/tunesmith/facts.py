"""What is worth knowing about a finished run, for the report and the model card."""

import sys
from collections.abc import Sequence
from typing import Any

import torch

from tunesmith.base.load import ComputeType
from tunesmith.events import Loaded, Prepared
from tunesmith.training.loop import StepReport


def run_facts(job: Prepared, loaded: Loaded, steps: Sequence[StepReport]) -> dict[str, dict[str, Any]]:
    """What is worth knowing about a run, by section."""
    recipe, data = job.recipe, job.data.so_far
    seconds = sum(step.seconds for step in steps)
    held_out = [step.eval_loss for step in steps if step.eval_loss is not None]
    return {
        "Model": {
            "base": job.source.base,
            "parameters": f"{loaded.total:,}, of them {loaded.trainable:,} trained ({loaded.trainable / loaded.total:.2%})",
            "weights": ", ".join(f"{name} {size / 1e6:,.0f} MB" for name, size in loaded.bytes.items()),
            "quantised": f"{loaded.quantised:.0%} of the decoder's linear weights",
            "adapter": f"r {recipe.lora_r}, alpha {recipe.lora_alpha:g}, dropout {recipe.lora_dropout:g}",
            "adapted layers": ", ".join(loaded.targets),
            "compute": f"{str(job.compute.dtype).removeprefix('torch.')} on {job.compute.device}: {job.compute.reason}",
            "linears": loaded.linears,
            "forward": loaded.path,
        },
        "Data": {
            "rows": f"{data.rows:,} trained on, {data.held_out:,} held out",
            "read as": data.columns,
            **({"left out": data.bad.describe()} if data.bad.count else {}),
            **({"to know": "; ".join(data.notes)} if data.notes else {}),
            "max_length": f"{data.max_length} tokens ({data.cut_rows} rows cut, {data.lost_tokens} answer tokens lost)",
            "an epoch": f"{data.tokens:,} tokens, {data.trained:,} of them trained",
            "packing": f"{recipe.packing}, {data.packed_rows:,} rows",
            "data SHA-256": data.sha256[:16],
        },
        "Training": {
            "updates": f"{len(steps)} of {job.updates}",
            "an update": f"{recipe.per_device_train_batch_size} packed rows × {recipe.gradient_accumulation_steps}",
            "learning rate": f"{recipe.learning_rate:g}, {recipe.lr_scheduler_type}, {recipe.optim}",
            "loss": f"{steps[0].loss:.4f} at the first update, {steps[-1].loss:.4f} at the last",
            "held-out loss": f"{held_out[-1]:.4f}" if held_out else "no held-out rows",
            "time": f"{seconds:.0f} s ({job.plan.seconds:.0f} s predicted), {sum(s.tokens for s in steps) / seconds:,.0f} tokens/s",
            "peak memory": f"{peak_bytes(job.compute) / 1e9:.2f} GB ({job.plan.bytes / 1e9:.2f} GB predicted)",
        },
    }


def reset_peak(compute: ComputeType) -> None:
    """Start counting the GPU's peak anew; a process's resident peak cannot be reset."""
    if compute.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(compute.device)


def peak_bytes(compute: ComputeType) -> int:
    """Highest memory so far: allocated on the GPU, or resident of this process."""
    if compute.device.type == "cuda":
        return torch.cuda.max_memory_allocated(compute.device)
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
