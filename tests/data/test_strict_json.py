"""Proves that lists read one element at a time are what json reads whole, however the file is cut, and faults keep their line."""

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data import strict_json
from tunesmith.data.strict_json import TOO_LONG, ListReader, StrictJson
from tunesmith.errors import DataError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def chunks_of(monkeypatch):
    """Files are read so many characters at once."""
    return lambda size: monkeypatch.setattr(strict_json, "CHUNK", size)


def read(text: str, limit: int = 10_000) -> list:
    reader = ListReader(io.StringIO(text), "rows.json", StrictJson(), limit)
    assert reader.begins()
    return list(reader)


@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 16])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_only", [True, False])
@settings(max_examples=40, deadline=None)
@given(values=st.lists(VALUES, max_size=5))
def test_a_list_read_in_pieces_is_the_list(chunk, indent, ascii_only, values):
    old, strict_json.CHUNK = strict_json.CHUNK, chunk
    try:
        assert read(json.dumps(values, indent=indent, ensure_ascii=ascii_only)) == values
    finally:
        strict_json.CHUNK = old


@pytest.mark.parametrize("chunk", [1, 5, 1 << 16])
@pytest.mark.parametrize(
    "text",
    ["[1,\n2,\n]", "[1,\n{2: 3},\n4]", "[1,\n[", '[1,\n"ab', "[1,\n2", "[1,\ntrue false]", '[1,\n"\\x"]', "[1]\nx", "[,\n\n1]"],
)
def test_a_fault_is_on_the_line_that_json_says(chunks_of, chunk, text):
    chunks_of(chunk)
    with pytest.raises(json.JSONDecodeError) as whole:
        json.loads(text)
    with pytest.raises(json.JSONDecodeError) as pieces:
        read(text)
    assert abs(pieces.value.lineno - whole.value.lineno) <= 1


def test_an_element_that_never_ends_is_given_up_at_the_limit(chunks_of):
    chunks_of(10)
    for text in ('"' + "x" * 5000, '["' + "x" * 5000 + '"', "[" * 500 + "]" * 499, '"\\' * 5000):
        with pytest.raises((DataError, json.JSONDecodeError), match=r"rows.json line 2: the row that begins here never ends"):
            read("[1,\n" + text, limit=100)


@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 16])
@settings(max_examples=60, deadline=None)
@given(values=st.lists(VALUES, max_size=6), limit=st.integers(0, 30), ascii_only=st.booleans())
def test_elements_beyond_the_limit_are_passed_by_and_no_others(chunk, values, limit, ascii_only):
    old, strict_json.CHUNK = strict_json.CHUNK, chunk
    try:
        texts = [json.dumps(value, ensure_ascii=ascii_only) for value in values]
        expected = [value if len(text) <= limit else TOO_LONG for value, text in zip(values, texts)]
        assert read("[" + " ,\n".join(texts) + "\n]", limit) == expected
    finally:
        strict_json.CHUNK = old


@pytest.mark.parametrize("text", ["", " \n", "{}", '"text"'])
def test_what_is_no_list_is_told(text):
    assert not ListReader(io.StringIO(text), "rows.json", StrictJson(), 100).begins()


def test_what_the_standard_does_not_allow_is_told_and_only_of_the_value_decoded_last():
    decoder = StrictJson()
    assert decoder.decode('{"a": NaN}') == {"a": None}
    assert decoder.problem == "NaN is no JSON value, write null"
    assert decoder.decode('[{"k": {"a": 1, "b": 2, "a": 3}}]') == [{"k": {"a": 3, "b": 2}}]
    assert decoder.problem == "the key 'a' stands there twice"
    decoder.decode('{"a": 1}')
    assert decoder.problem == ""
