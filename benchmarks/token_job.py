"""A job for rows of token ids, for benchmarks whose models have no tokenizer."""

from collections.abc import Sequence

from tunesmith.base.catalog import resolve
from tunesmith.base.load import choose_compute
from tunesmith.data.loader import Loader
from tunesmith.data.render import Example
from tunesmith.events import Prepared
from tunesmith.plan.memory import shape_of
from tunesmith.plan.plan import make_plan
from tunesmith.recipe import Recipe
from tunesmith.training.loop import total_updates


def token_job(recipe: Recipe, rows: Sequence[Sequence[Example]]) -> Prepared:
    """What `tunesmith.job.prepare_run` gives, but for the data set's facts, which training does not need.

    Args:
        recipe: names its model, learning rate and batch size. rows: packed rows.
    """
    source = resolve(recipe.model_name_or_path)
    shape, compute = shape_of(source), choose_compute(recipe)
    assert recipe.per_device_train_batch_size is not None
    loader = Loader(
        rows, recipe.per_device_train_batch_size, recipe.gradient_accumulation_steps, recipe.shuffle, recipe.seed,
        recipe.shared_prefix,
    )  # fmt: skip
    updates = total_updates(loader, recipe)
    plan = make_plan(shape, recipe, compute, [pack for window in loader.epoch(0) for pack in window], updates)
    return Prepared(plan.chosen.way.of(recipe), recipe, source, shape, compute, None, loader, plan, updates)  # type: ignore[arg-type]
