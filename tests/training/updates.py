"""A few updates of a small model, whichever way they are made."""

import gc

import torch

from tunesmith.base.adapter import adapter_parameters, attach
from tunesmith.base.catalog import resolve
from tunesmith.base.lean import speed_up
from tunesmith.base.load import choose_compute, load_model
from tunesmith.data.loader import Loader
from tunesmith.data.render import Example
from tunesmith.job import recomputed_and_offloaded
from tunesmith.recipe import Recipe
from tunesmith.training.graph import GraphUpdate
from tunesmith.training.step import choose_loss
from tunesmith.training.update import EagerUpdate

STEPS = 8


def run(
    folder, way=GraphUpdate, batch=4, accumulation=1, lengths=(24, 24, 24, 24), rate=1e-2, ahead=False, prefix=0, eager=False,
    **settings,
):  # fmt: skip
    """Losses and norms ``[STEPS, 2]`` of a few updates on the same rows, and the adapter after them. prefix: tokens that all
    rows begin with, and are not trained on. eager: it is told that nothing could be captured."""
    recipe = Recipe.of({
        "model_name_or_path": str(folder), "dataset_name": "x", "max_length": 24, "learning_rate": 1e-2, "dtype": "float32",
        "lora_dropout": 0.3, "dequantize": "always", "gradient_checkpointing": False, "activation_offloading": False,
        "offload_base": "never",
    } | settings)  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(5, 60, (length,), generator=generator).tolist() for length in lengths]
    rows = [rows[0][:prefix] + row[prefix:] for row in rows]
    labels = [[-100] * prefix + row[prefix:] for row in rows]
    examples = [[Example(row, label, "row")] for row, label in zip(rows, labels)]
    loader = Loader(examples, batch, accumulation, shuffle=False, shared_prefix=recipe.shared_prefix)
    compute = choose_compute(recipe)
    base = load_model(resolve(str(folder)), recipe, compute)
    model = attach(base, recipe, "x", None)
    speed_up(model, compute.dtype, recipe.dequantize == "always")
    loss_of, path = choose_loss(base)
    assert path.startswith("flat")
    loss_of = recomputed_and_offloaded(base, loss_of, recipe, compute)
    parameters = adapter_parameters(model)
    model.train()
    settings = (loss_of, parameters, recipe, rate)
    made, told, packs = [], [], next(iter(loader.epoch(0)))
    update = way(*settings, compute.dtype, *([] if issubclass(way, EagerUpdate) else [packs[0], told.append]))
    assert (max(packs[0].segments.parents) >= 0) == (prefix > 0 and recipe.shared_prefix)
    for step in range(1, STEPS + 1):
        if step == 1 or not ahead:
            update.begin(packs, step)
        update.finish(rate)
        if ahead:
            assert update.overlaps
            update.begin(packs, step + 1)
        made.append(update.result())
    if isinstance(update, GraphUpdate):
        assert bool(told) == (update.eager_reason is not None) == eager
    update.close()
    adapter = torch.cat([p.detach().flatten() for p in parameters.values()]).cpu()
    del model, base, update
    gc.collect()
    return torch.tensor(made), adapter
