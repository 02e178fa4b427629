"""Proves that segment attention is per-document attention: right values and gradients, and nothing leaks between documents."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tunesmith.kernels.attention import (
    _Pad,
    _Unpad,
    segment_attention,
    segment_attention_plain,
)
from tunesmith.kernels.segments import PADDING_TOLERANCE, Segments, _bucket, segment_positions

LAYOUTS = {
    "one document": ([5], [-1]),
    "equal lengths": ([3, 3, 3], [-1, -1, -1]),
    "ragged": ([2, 3, 3], [-1, -1, -1]),
    "several buckets": ([1, 4, 2, 5], [-1, -1, -1, -1]),
    "prefix": ([3, 2, 2], [-1, 0, 0]),
    "prefix, ragged": ([3, 1, 2, 4], [-1, 0, 0, 0]),
    "two prefixes and loners": ([2, 1, 2, 3, 2, 2, 2, 3], [-1, 0, 0, -1, 3, 3, -1, -1]),
}
OPTIONS = {
    "plain": {},
    "window": {"sliding_window": 2},
    "softcap": {"softcap": 1.5},
    "window and softcap": {"sliding_window": 3, "softcap": 1.5},
}
HEADS = {"one to one": (2, 2), "grouped": (4, 2), "one key head": (2, 1)}

layouts = pytest.mark.parametrize("layout", LAYOUTS)
options = pytest.mark.parametrize("option", OPTIONS)


def _inputs(segments: Segments, heads: tuple[int, int] = (2, 1), dtype=torch.float64, size: int = 2) -> list[Tensor]:
    tokens = sum(segments.lengths)
    return [torch.randn(tokens, h, size, dtype=torch.float64).to(dtype).requires_grad_() for h in (heads[0], heads[1], heads[1])]


def _span(segments: Segments, index: int) -> list[int]:
    start = sum(segments.lengths[:index])
    return list(range(start, start + segments.lengths[index]))


def _document(segments: Segments, index: int) -> list[int]:
    """Flat positions of a document with the prefix it continues."""
    parent = segments.parents[index]
    return (_span(segments, parent) if parent >= 0 else []) + _span(segments, index)


@options
@layouts
def test_gradients_are_those_of_finite_differences(layout, option):
    segments = Segments.of(*LAYOUTS[layout])
    run = lambda q, k, v: segment_attention(q, k, v, segments, scaling=0.7, **OPTIONS[option])  # noqa: E731
    assert torch.autograd.gradcheck(run, _inputs(segments))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("heads", HEADS)
@options
@layouts
def test_values_and_gradients_equal_the_plain_twin(layout, option, heads, dtype, tolerance):
    segments = Segments.of(*LAYOUTS[layout])
    inputs = _inputs(segments, HEADS[heads], dtype, size=4)
    results = []
    for function in (segment_attention, segment_attention_plain):
        out = function(*inputs, segments, scaling=0.5, **OPTIONS[option])
        assert out.shape == inputs[0].shape
        assert out.dtype == dtype
        results.append([out, *torch.autograd.grad((out * torch.linspace(-1, 1, out.numel()).view_as(out).to(dtype)).sum(), inputs)])
    torch.testing.assert_close(results[0], results[1], rtol=tolerance, atol=tolerance)


@st.composite
def _random_segments(draw) -> tuple[list[int], list[int]]:
    lengths, parents = [], []
    for _ in range(draw(st.integers(1, 3))):
        own = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
        parent = -1
        if draw(st.booleans()):
            parent = len(lengths)
            lengths.append(draw(st.integers(1, 6)))
            parents.append(-1)
        lengths += own
        parents += [parent] * len(own)
    return lengths, parents


@settings(max_examples=60, deadline=None)
@given(layout=_random_segments(), window=st.none() | st.integers(1, 12), softcap=st.none() | st.just(2.0))
def test_any_layout_equals_the_plain_twin(layout, window, softcap):
    torch.manual_seed(0)
    segments = Segments.of(*layout)
    inputs = _inputs(segments)
    fast = segment_attention(*inputs, segments, scaling=0.7, sliding_window=window, softcap=softcap)
    plain = segment_attention_plain(*inputs, segments, scaling=0.7, sliding_window=window, softcap=softcap)
    torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-10)


@layouts
def test_each_document_gets_what_causal_attention_over_it_alone_gives(layout):
    segments = Segments.of(*LAYOUTS[layout])
    query, key, value = _inputs(segments, (2, 2))
    out = segment_attention(query, key, value, segments, scaling=0.7)
    for index in range(len(segments.lengths)):
        alone = [t[_document(segments, index)].transpose(0, 1) for t in (query, key, value)]
        expected = F.scaled_dot_product_attention(*alone, is_causal=True, scale=0.7).transpose(0, 1)
        torch.testing.assert_close(out[_span(segments, index)], expected[-segments.lengths[index] :], rtol=1e-10, atol=1e-10)


@options
@layouts
def test_changing_a_document_changes_no_other_document_at_all(layout, option):
    segments = Segments.of(*LAYOUTS[layout])
    inputs = [t.detach() for t in _inputs(segments)]
    before = segment_attention(*inputs, segments, scaling=0.7, **OPTIONS[option])
    for index in range(len(segments.lengths)):
        heirs = [i for i, parent in enumerate(segments.parents) if parent == index]
        touched = {position for i in (index, *heirs) for position in _span(segments, i)}
        others = [position for position in range(len(before)) if position not in touched]
        changed = [t.clone() for t in inputs]
        for t in changed:
            t[_span(segments, index)] += 10
        after = segment_attention(*changed, segments, scaling=0.7, **OPTIONS[option])
        assert torch.equal(after[others], before[others])
        assert not torch.equal(after[_span(segments, index)], before[_span(segments, index)])


@layouts
def test_no_gradient_flows_between_documents(layout):
    segments = Segments.of(*LAYOUTS[layout])
    inputs = _inputs(segments)
    out = segment_attention(*inputs, segments, scaling=0.7)
    for index in range(len(segments.lengths)):
        own = _document(segments, index)
        others = [position for position in range(len(out)) if position not in own]
        gradients = torch.autograd.grad(out[_span(segments, index)].square().sum(), inputs, retain_graph=True)
        for gradient in gradients:
            assert torch.equal(gradient[others], torch.zeros_like(gradient[others]))


def test_a_token_does_not_see_the_tokens_after_it():
    segments = Segments.of([3, 4, 2], [-1, 0, 0])
    inputs = [t.detach() for t in _inputs(segments)]
    before = segment_attention(*inputs, segments, scaling=0.7)
    changed = [t.clone() for t in inputs]
    for t in changed:
        t[5] += 10
    after = segment_attention(*changed, segments, scaling=0.7)
    assert torch.equal(after[:5], before[:5])
    assert not torch.equal(after[6], before[6])


def test_every_heir_of_a_prefix_adds_to_its_gradient():
    segments = Segments.of([2, 2, 3], [-1, 0, 0])
    inputs = _inputs(segments)
    out = segment_attention(*inputs, segments, scaling=0.7)
    whole = torch.autograd.grad(out.square().sum(), inputs, retain_graph=True)
    parts = [torch.autograd.grad(out[_span(segments, i)].square().sum(), inputs, retain_graph=True) for i in range(3)]
    torch.testing.assert_close(whole, tuple(sum(p) for p in zip(*parts)), rtol=1e-10, atol=1e-10)


def test_a_window_of_one_token_returns_the_token_itself():
    segments = Segments.of([3, 2, 4], [-1, 0, 0])
    query, key, value = _inputs(segments, (2, 2))
    torch.testing.assert_close(segment_attention(query, key, value, segments, scaling=0.7, sliding_window=1), value)


def test_half_precision_stays_near_the_twin():
    segments = Segments.of([3, 2, 4], [-1, 0, 0])
    inputs = [t.detach() for t in _inputs(segments, (4, 2), torch.bfloat16, size=8)]
    for option in OPTIONS.values():
        fast = segment_attention(*inputs, segments, scaling=0.3, **option)
        plain = segment_attention_plain(*(t.double() for t in inputs), segments, scaling=0.3, **option)
        assert fast.dtype == torch.bfloat16
        torch.testing.assert_close(fast.double(), plain, rtol=0.03, atol=0.03)


@given(layout=_random_segments())
@settings(max_examples=100, deadline=None)
def test_buckets_cover_the_tokens_in_order_and_bound_the_padding(layout):
    segments = Segments.of(*layout)
    covered, first = 0, 0
    for bucket in segments.buckets:
        lengths = segments.lengths[first : first + bucket.count]
        parents = set(segments.parents[first : first + bucket.count])
        assert bucket.tokens == slice(covered, covered + sum(lengths))
        assert bucket.length == max(lengths)
        assert max(lengths) <= PADDING_TOLERANCE * min(lengths)
        assert len(parents) == 1
        parent = parents.pop()
        own = _span(segments, parent) if parent >= 0 else []
        assert bucket.prefix == (slice(own[0], own[-1] + 1) if own else None)
        covered, first = covered + sum(lengths), first + bucket.count
    assert (covered, first) == (sum(segments.lengths), len(segments.lengths))


def test_positions_continue_from_the_prefix():
    segments = Segments.of([3, 2, 1, 2], [-1, 0, 0, -1])
    assert segment_positions(segments).tolist() == [0, 1, 2, 3, 4, 3, 0, 1]


@pytest.mark.parametrize("lengths", [(3, 2), (1, 4, 2), (5, 1, 1, 3)])
def test_documents_are_padded_with_their_own_tokens_and_come_back_as_they_were(lengths):
    bucket = _bucket(lengths, 0, None, "cpu")
    rows = torch.randn(sum(lengths), 2, dtype=torch.float64, requires_grad=True)
    padded = _Pad.apply(rows, bucket.source, bucket.valid)
    assert torch.equal(_Unpad.apply(padded, bucket.valid), rows)
    for document, slots in zip(rows.split(lengths), padded.view(len(lengths), max(lengths), 2)):
        assert torch.equal(slots[: len(document)], document)
        assert (slots[len(document) :] == document[-1]).all()
    assert torch.autograd.gradcheck(lambda t: _Unpad.apply(_Pad.apply(t, bucket.source, bucket.valid), bucket.valid).square(), rows)
    assert torch.autograd.gradcheck(lambda t: _Unpad.apply(t, bucket.valid), padded.detach().requires_grad_())
