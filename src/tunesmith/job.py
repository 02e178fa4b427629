"""The job: all that is known before a run starts, and the model made ready for it."""

import dataclasses
import importlib.util
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from tunesmith.base.adapter import attach, names_among
from tunesmith.base.catalog import cache_dir, resolve
from tunesmith.base.context import context_of
from tunesmith.base.lean import PROBE_TOKENS, speed_up
from tunesmith.base.load import ComputeType, choose_compute, load_model, quantised_share, weight_bytes
from tunesmith.base.stream import announce_recomputed
from tunesmith.base.tokenizer import load_tokenizer
from tunesmith.data.cache import Cache
from tunesmith.data.dataset import Dataset, prepare
from tunesmith.data.loader import Loader, computed_tokens, default_batch_size, default_split
from tunesmith.data.mixture import names_of
from tunesmith.data.packing import Pack, make_pack
from tunesmith.data.render import Renderer
from tunesmith.data.sources import absolute_name
from tunesmith.errors import RecipeError
from tunesmith.events import Loaded, Note, Prepared, Progress, Watch
from tunesmith.facts import reset_peak
from tunesmith.kernels.segments import Segments
from tunesmith.mixed_data import mixture_name
from tunesmith.places import check_recipe, free_folder
from tunesmith.plan.memory import Shape, shape_of
from tunesmith.plan.plan import make_plan
from tunesmith.plan.way import Way
from tunesmith.recipe import Recipe
from tunesmith.suffixes import DATA_SUFFIXES
from tunesmith.training import guard
from tunesmith.training.loop import total_updates
from tunesmith.training.offload import with_host_activations
from tunesmith.training.optimizer import check_optimizer
from tunesmith.training.schedule import default_learning_rate
from tunesmith.training.step import PackLoss, choose_loss

REHEARSED_TOKENS = 1024


def prepare_run(
    recipe: Recipe, watch: Watch = lambda event: None, *, begins: bool = True, way: Way | None = None, only_plan: bool = False
) -> tuple[Prepared, Renderer]:
    """Everything up to the plan: model found, data rendered and packed, memory and time predicted.

    Args:
        begins: see `check_recipe`. way: that it was begun in, which it keeps to so that every sum is the same.
        only_plan: nothing will be run, so that weights and a GPU may be elsewhere.
    """
    check_recipe(recipe, begins=begins and not only_plan)
    source = resolve(recipe.model_name_or_path, lambda line: watch(Note(line)), weights=not only_plan)
    shape = shape_of(source)
    names_among([name for name, _, _ in shape.linears], recipe.lora_target_modules)  # before the data is read
    compute = choose_compute(recipe, elsewhere=only_plan)
    check_optimizer(recipe, compute.device)
    renderer = Renderer(load_tokenizer(source, recipe.chat_template), recipe.assistant_only_loss)
    limit = context_of(shape.positions, renderer.tokenizer)
    cache = Cache(cache_dir() / "rows")
    data = prepare(recipe, renderer, limit, lambda done, total: watch(Progress("rows", done, total)), cache)
    resolved = _resolve(recipe, shape, data)
    loader = _loader(resolved, data)
    _check_length(recipe, data, loader)
    updates = total_updates(loader, recipe)
    windows = loader.sample()
    packs = [pack for window in windows for pack in window]
    plan = make_plan(shape, resolved, compute, packs, updates, len(packs) / len(windows))
    if way is not None and (row := next((row for row in plan.rows if row.way == way), None)):
        plan = dataclasses.replace(plan, chosen=row, reason="as it was begun")
    planned = plan.chosen.way.of(resolved)
    prepared = Prepared(planned, resolved, source, shape, compute, data, _loader(planned, data), plan, updates)
    watch(prepared)
    return prepared, renderer


def with_less_memory(job: Prepared) -> Prepared | None:
    """The same job in the fastest of the ways that are predicted to take less memory than its own; None if it takes least."""
    rows = [row for row in job.plan.rows if row.bytes < job.plan.bytes]
    if not rows:
        return None
    plan = dataclasses.replace(job.plan, chosen=min(rows, key=lambda row: row.seconds), reason="memory ran out")
    planned = plan.chosen.way.of(job.asked)
    return dataclasses.replace(job, recipe=planned, loader=_loader(planned, job.data), plan=plan)


def _loader(recipe: Recipe, data: Dataset) -> Loader:
    assert recipe.per_device_train_batch_size is not None
    return Loader(
        data.rows, recipe.per_device_train_batch_size, recipe.gradient_accumulation_steps,
        recipe.shuffle, recipe.seed, recipe.shared_prefix, data.shards.since if data.shards else None,
    )  # fmt: skip


def _check_length(recipe: Recipe, data: Dataset, loader: Loader) -> None:
    """Raises RecipeError if rows are streamed and nobody said for how many updates."""
    if data.shards and recipe.max_steps <= 0:
        raise RecipeError(
            "Rows that are streamed are counted while they are trained on, so how many updates an epoch has is not known.",
            f"Say how many to make: the first {data.facts.rows:,} rows make --max-steps {loader.updates_per_epoch}.",
        )


def _resolve(recipe: Recipe, shape: Shape, data: Dataset) -> Recipe:
    """The recipe with every default that depends on model or data filled in."""
    length, rows = data.facts.max_length, data.facts.packed_rows
    batch, accumulation = recipe.per_device_train_batch_size, recipe.gradient_accumulation_steps
    if batch is None:  # the same rows an update whether prefixes are shared or not, and as many at once as that allows
        batch = default_batch_size(rows, computed_tokens(data.rows, length), recipe.num_train_epochs, accumulation)
        split = 1 if recipe.shared_prefix else default_split(batch, length)
        batch, accumulation = batch // split, accumulation * split
    return recipe.model_copy(
        update={
            "learning_rate": recipe.learning_rate or default_learning_rate(shape.hidden),
            "max_length": length,
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": accumulation,
            "output_dir": recipe.output_dir or str(_free_folder(recipe)),
            "model_name_or_path": _absolute(recipe.model_name_or_path),
            **_absolute_data(recipe),
        }
    )


def _absolute_data(recipe: Recipe) -> dict[str, Any]:
    """Where rows come from, as seen from anywhere."""
    held_out = {"eval_dataset": absolute_name(recipe.eval_dataset) if recipe.eval_dataset else recipe.eval_dataset}
    if recipe.datasets is None:
        return {**held_out, "dataset_name": ",".join(map(absolute_name, names_of(recipe.dataset_name)))}
    entries = [entry.model_copy(update={"path": absolute_name(entry.path)}) for entry in recipe.datasets]
    return {**held_out, "datasets": entries, "dataset_name": mixture_name(entries)}


def _absolute(reference: str) -> str:
    """A path as seen from anywhere, so that the run can be opened from anywhere; hub ids as they are."""
    path = Path(reference).expanduser()
    return str(path.resolve()) if path.exists() else reference


def load_job(job: Prepared) -> tuple[Any, PackLoss, Loaded]:
    """The model with a fresh adapter on its fastest path, the loss of a pack, and what to tell the user."""
    recipe = job.recipe
    reset_peak(job.compute)
    with _kernels_compiling(job):
        base = load_model(job.source, recipe, job.compute)
    stored, quantised = weight_bytes(base), quantised_share(base)
    model = attach(base, recipe, job.source.base, job.source.revision)
    linears = speed_up(model, job.compute.dtype, job.plan.keep)
    loss_of, path = choose_loss(base)
    loss_of = recomputed_and_offloaded(base, loss_of, recipe, job.compute)
    if job.compute.dtype == torch.float16:
        pack = job.loader.first_pack().to(job.compute.device)
        guard.check_range(base, lambda: loss_of(pack))
    trainable, total = model.get_nb_trainable_parameters()
    targets = sorted(model.peft_config["default"].target_modules)
    return model, loss_of, Loaded(stored, quantised, trainable, total, targets, linears, path)


def _kernels_compiling(job: Prepared) -> AbstractContextManager[None]:
    """On a GPU, a rehearsal of the kernels this job will call."""
    if job.compute.device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return nullcontext()
    from tunesmith.kernels.fused.rehearsal import Widths, rehearsal

    shape, recipe, head_dim = job.shape, job.recipe, job.shape.rotary_width
    widths = Widths(
        shape.hidden, shape.inner, shape.query_width // head_dim, shape.key_width // head_dim, head_dim, shape.vocab,
        recipe.lora_r, _group_sizes(shape, recipe), recipe.lora_dropout > 0, job.compute.dtype, recipe.load_in_4bit,
    )  # fmt: skip
    first = job.loader.first_pack().segments.documents
    lengths, _ = first
    few = tuple(length for length, end in zip(lengths, accumulate(lengths)) if end <= REHEARSED_TOKENS) or (REHEARSED_TOKENS,)
    blocks = sum(few) // 16 + 2 * len(few)  # padded, as captured packs are
    device = job.compute.device
    pack = Segments(few, (-1,) * len(few), device, blocks, like=first)
    return rehearsal(widths, pack, Segments.of([PROBE_TOKENS], device=device))


def _group_sizes(shape: Shape, recipe: Recipe) -> tuple[int, ...]:
    """How many adapted linears of one layer read the same input, as most families name them."""
    adapted = {name.rsplit(".", 1)[-1] for name, _, _ in shape.adapted(recipe.lora_target_modules)}
    sizes = [len(adapted & together) for together in ({"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"})]
    return tuple(sorted({1, *sizes} - {0}))


def recomputed_and_offloaded(base: Any, loss_of: PackLoss, recipe: Recipe, compute: ComputeType) -> PackLoss:
    """The loss with the recipe's savings of memory switched on: layers recomputed, activations on the host."""
    if recipe.gradient_checkpointing:
        # On a GPU dropout is drawn from a counter: there is no random state to bring back, which would end a capture.
        on_cpu = compute.device.type == "cpu"
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False, "preserve_rng_state": on_cpu})
        announce_recomputed(base)
    if recipe.activation_offloading:
        return with_host_activations(loss_of)
    return loss_of


def eval_packs(job: Prepared) -> list[Pack]:
    """Held-out examples, like lengths together, in packs of about the size of a training pack."""
    examples = sorted(job.data.held_out, key=lambda e: len(e.input_ids))
    assert job.recipe.max_length is not None
    assert job.recipe.per_device_train_batch_size is not None
    room = job.recipe.per_device_train_batch_size * job.recipe.max_length
    packs: list[list[Any]] = []
    used = room
    for example in examples:
        if used + len(example.input_ids) > room:
            packs.append([])
            used = 0
        packs[-1].append(example)
        used += len(example.input_ids)
    return [make_pack([[e] for e in pack], job.recipe.shared_prefix) for pack in packs]


def _free_folder(recipe: Recipe) -> Path:
    parts = (_bare(recipe.model_name_or_path, (".gguf",)), _bare(recipe.dataset_name, (".gz", *DATA_SUFFIXES)))
    name = "-".join(re.sub(r"[^A-Za-z0-9._-]+", "-", part).strip("-.") or "run" for part in parts)
    return free_folder(Path("runs") / name)


def _bare(name: str, suffixes: Sequence[str]) -> str:
    """The last part of a path or id without such endings: llama-3.1-8b keeps its name."""
    last = Path(name).name
    for suffix in suffixes:
        last = last.removesuffix(suffix)
    return last
