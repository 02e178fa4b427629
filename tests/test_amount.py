"""Proves that amounts of memory are read as people mean them."""

import pytest

from tunesmith.amount import parse_bytes
from tunesmith.errors import RecipeError
from tunesmith.recipe import Recipe


@pytest.mark.parametrize(
    ("text", "count"),
    [("6GB", 6 * 10**9), ("6 gb", 6 * 10**9), ("1.5G", 15 * 10**8), ("500MB", 5 * 10**8), ("2GiB", 2**31), ("1000000", 10**6)],
)
def test_an_amount_is_so_many_bytes(text, count):
    assert parse_bytes(text) == count
    assert Recipe.of({"memory": text}).memory_bytes == count


@pytest.mark.parametrize("text", ["", "GB", "six", "-1GB", "6TB", "1e9", "6GB free"])
def test_anything_else_is_refused_by_name(text):
    with pytest.raises(ValueError, match="amount of memory"):
        parse_bytes(text)
    with pytest.raises(RecipeError, match="memory"):
        Recipe.of({"memory": text})


def test_memory_without_its_unit_is_refused():
    with pytest.raises(RecipeError, match=r"memory: 6 will not do: it is less than a megabyte: add a unit, such as 6GB"):
        Recipe.of({"memory": 6})


def test_no_amount_means_what_is_free():
    assert Recipe.of({}).memory_bytes is None
