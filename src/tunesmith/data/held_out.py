"""Rows that are not trained on, to judge by."""

from tunesmith.data.sources import is_bundled
from tunesmith.recipe import Recipe


def brings_held_out(recipe: Recipe) -> bool:
    """Whether held-out rows come from elsewhere: a file of their own, or the bundled test split."""
    return bool(recipe.eval_dataset) or (is_bundled(recipe.dataset_name) and not recipe.val_size)
