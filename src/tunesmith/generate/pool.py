"""Rows that nobody decodes in, kept for the next one: their store, their stacked adapter, and on a GPU their captured steps."""

from typing import Any
from weakref import WeakKeyDictionary

from tunesmith.base.linear import lean_layers
from tunesmith.generate.cached import CachedRows
from tunesmith.kernels.cached_attention import StoreShape

MOST_BYTES = 2**30
"""A larger store is given back."""
MOST_KEPT = 2
"""For the model with its adapter and without."""

_idle: "WeakKeyDictionary[Any, list[tuple[tuple[Any, ...], CachedRows]]]" = WeakKeyDictionary()


def take_rows(model: Any, shape: StoreShape, slots: int, base: bool) -> CachedRows:
    """Empty rows of this model, kept ones if nothing they were made for has moved; the adapter is read now."""
    kept, state = _idle.get(model, []), _state(model)
    _idle[model] = [(made_for, rows) for made_for, rows in kept if made_for == state and rows.base != base]
    for made_for, rows in kept:
        if made_for == state and rows.base == base:
            rows.slots = slots
            for linears in rows.fixed:
                linears.refresh()
            return rows
    return CachedRows(model, shape, slots, base)


def keep_rows(model: Any, rows: CachedRows) -> None:
    """Hand back rows that are empty."""
    if rows.all_fixed and rows.store.data.nbytes <= MOST_BYTES:
        _idle[model] = [(_state(model), rows), *_idle.get(model, [])][:MOST_KEPT]


def _state(model: Any) -> tuple[Any, ...]:
    """What captured steps were made for: where every weight lies, which linears are computed together, what is merged."""
    layers = lean_layers(model).values()
    return (*(p.data_ptr() for p in model.parameters()), *((id(layer.group), bool(layer.merged)) for layer in layers))
