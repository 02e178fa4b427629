"""Proves that attention over segments and its gradients are the plain twin's, for any cut of the tokens into segments."""

import numpy as np
import pytest
import torch

from tunesmith.kernels.attention import segment_attention_plain
from tunesmith.kernels.rope import rotary_plain
from tunesmith.kernels.segments import Segments, segment_positions

attention = pytest.importorskip("tunesmith.kernels.fused.attention", reason="needs triton")
backward = pytest.importorskip("tunesmith.kernels.fused.attention_backward", reason="needs triton")
tables = pytest.importorskip("tunesmith.kernels.fused.attention_layout", reason="needs triton")
tiles = pytest.importorskip("tunesmith.kernels.fused.attention_tiles", reason="needs triton")

LONE = (1, 33, 16), (-1, -1, -1)
FEW = (5, 17, 3), (-1, 0, -1)
SHARED = (18, 17, 1, 5, 3, 18, 1), (-1, 0, 0, -1, -1, 4, -1)  # two prefixes, documents alone between them
LONG = (70, 130, 65), (-1, 0, -1)


def _inputs(tokens, heads, key_heads, size, device, dtype):
    """q, k, v as columns of one matrix; the gradient of the output."""
    torch.manual_seed(0)
    widths = [heads * size, key_heads * size, key_heads * size]
    wide = torch.randn(tokens, sum(widths) + 16, device=device).to(dtype)[:, 8:-8]
    return [part.unflatten(1, (-1, size)) for part in wide.split(widths, 1)], torch.randn(tokens, heads, size).to(device, dtype)


def _actual(qkv, dout, layout, scaling=0.3, sliding_window=None, softcap=None, turn=()):
    """Output and gradients; the latter into columns of one matrix, of which nothing else is written."""
    out, lse = attention.segment_attention_forward(*qkv, layout, scaling, sliding_window, softcap, *turn)
    widths = [part[0].numel() for part in qkv]
    joined = torch.full((out.shape[0], sum(widths) + 8), torch.nan, dtype=out.dtype, device=out.device)
    slopes = [column.unflatten(1, x.shape[1:]) for column, x in zip(joined[:, 4:-4].split(widths, 1), qkv)]
    backward.segment_attention_backward(dout, *qkv, out, lse, layout, scaling, sliding_window, softcap, *slopes, *turn)
    assert joined[:, :4].isnan().all()
    assert joined[:, -4:].isnan().all()
    return out, *slopes


def _expected(qkv, dout, pack, scaling=0.3, turn=(), **options):
    leaves = [x.detach().float().requires_grad_() for x in qkv]
    turned = rotary_plain(*leaves, *turn) if turn else leaves
    out = segment_attention_plain(*turned, Segments.of(*pack), scaling=scaling, **options)
    return out.detach(), *torch.autograd.grad(out, leaves, dout.float())


def _agree(actual, expected):
    """Up to the rounding of weights and scores' gradients, which go into a product, hence relative to the largest."""
    tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}[actual[0].dtype]
    for name, got, wanted in zip(("out", "dq", "dk", "dv"), actual, expected):
        scale = max(1, wanted.abs().max().item())
        torch.testing.assert_close(
            got.float(), wanted, rtol=tolerance, atol=tolerance * scale, msg=lambda text, name=name: f"{name}: {text}"
        )


def _check(pack, device, block=16, heads=1, key_heads=1, size=16, dtype=torch.float32, blocks=None, **options):
    qkv, dout = _inputs(sum(pack[0]), heads, key_heads, size, device, dtype)
    layout = tables.layout(*pack, device, block, blocks)
    _agree(_actual(qkv, dout, layout, **options), _expected(qkv, dout, pack, **options))


@pytest.mark.parametrize(
    ("pack", "heads", "key_heads", "size", "dtype"),
    [(LONE, 2, 2, 16, torch.float32), (SHARED, 3, 1, 24, torch.float32), (FEW, 6, 2, 24, torch.bfloat16)],
)
def test_output_and_gradients_equal_the_plain_twin(device, pack, heads, key_heads, size, dtype):
    _check(pack, device, 16, heads, key_heads, size, dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_segments_a_little_longer_than_blocks(device, dtype):
    _check(LONG, device, 64, dtype=dtype)


@pytest.mark.parametrize("size", [8, 80, 96, 128])
def test_head_sizes(device, size):
    _check(((5, 20, 2), (-1, 0, -1)), device, 32, size=size, dtype=torch.bfloat16)


@pytest.mark.parametrize(("length", "size", "block"), [(1, 64, 32), (17, 64, 32), (1, 128, 16)])
def test_keys_past_the_end_are_not_heard_where_all_scores_are_low(device, length, size, block):
    """Their weight would be infinite, and infinite times their zeros no number."""
    qkv, dout = _inputs(length, 1, 1, size, device, torch.float32)
    qkv[0].fill_(1.0)
    qkv[1].copy_(-300 / size + 0.001 * torch.randn_like(qkv[1]))
    layout = tables.layout((length,), (-1,), device, block)
    for got, wanted in zip(_actual(qkv, dout, layout), _expected(qkv, dout, ((length,), (-1,)))):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)  # scores of 90 are rounded to 1e-5, and so are weights


def test_the_largest_head(device):
    _check(((5, 20), (-1, 0)), device, 16, size=256)


@pytest.mark.parametrize(
    ("size", "parts"), [(8, (4, 16, 16)), (64, (32, 32, 32)), (72, (64, 64, 16)), (96, (64, 64, 32)), (256, (128, 128, 128))]
)
def test_parts_of_a_head_waste_little(size, parts):
    assert tiles.parts_of(size) == parts
    assert tiles.parts_of(size, halves=True)[0] == size // 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    ("size", "sliding_window", "softcap"), [(64, None, None), (80, None, None), (96, 300, None), (256, None, 20.0)]
)
def test_long_documents_with_the_tiles_of_a_large_gpu(size, sliding_window, softcap):
    pack = (700, 130, 65, 900), (-1, 0, 0, -1)
    block = tiles.largest_block(size, torch.bfloat16, torch.device("cuda"))
    _check(pack, "cuda", block, 4, 2, size, torch.bfloat16, scaling=0.1, sliding_window=sliding_window, softcap=softcap)


@pytest.mark.parametrize(("sliding_window", "softcap"), [(7, None), (20, 2.0), (None, 2.0), (1, None), (1000, None)])
def test_windows_count_through_the_prefix_and_softcaps_have_their_slope(device, sliding_window, softcap):
    _check(SHARED, device, scaling=1.0, sliding_window=sliding_window, softcap=softcap)


@pytest.mark.parametrize(("size", "sliding_window"), [(24, None), (16, 7)])
def test_rotary_inside_is_rotary_before(device, size, sliding_window):
    angles = torch.outer(segment_positions(Segments.of(*SHARED)).float(), 10 ** -torch.linspace(0, 2, size // 2)).repeat(1, 2)
    turn = angles.cos().to(device), angles.sin().to(device)
    _check(SHARED, device, size=size, sliding_window=sliding_window, turn=turn)


@pytest.mark.parametrize("turned", [False, True])
def test_programs_share_a_prefix_with_many_children(device, monkeypatch, turned):
    monkeypatch.setattr(tables, "PART_TILES", 1)
    pack = (18, 17, 1, 20, 3), (-1, 0, 0, 0, -1)
    angles = torch.rand(59, 8).repeat(1, 2)
    turn = (angles.cos().to(device), angles.sin().to(device)) if turned else ()
    layout = tables.layout(*pack, device, 16)
    assert layout.parts == 6  # two blocks of the prefix, three tiles of children
    _check(pack, device, turn=turn)


def test_one_padded_layout_takes_the_tables_of_any_pack(device, monkeypatch):
    monkeypatch.setattr(tables, "PART_TILES", 1)
    static = tables.layout((40,), (-1,), device, 16, blocks=6, parts=9)
    for pack in [((18, 17, 1, 4), (-1, 0, 0, -1)), ((1, 1, 38), (-1, -1, -1))]:
        qkv, dout = _inputs(40, 1, 1, 16, device, torch.float32)
        static.load(tables.layout(*pack, "cpu", 16, blocks=6, parts=9))
        fresh = _actual(qkv, dout, tables.layout(*pack, device, 16, parts=9), sliding_window=30)
        for got, wanted in zip(_actual(qkv, dout, static, sliding_window=30), fresh):
            assert torch.equal(got, wanted)


def _random_pack(rng):
    lengths, parents = [], []
    while len(lengths) < 12:
        lengths.append(int(rng.integers(1, 90)))
        parents.append(-1)
        heirs = int(rng.integers(0, 6)) if rng.random() < 0.4 else 0
        parents += [len(lengths) - 1] * heirs
        lengths += rng.integers(1, 90, heirs).tolist()
    return lengths, parents


@pytest.mark.parametrize("seed", range(8))
def test_tables_pair_every_query_with_every_key_it_sees_once(seed):
    rng = np.random.default_rng(seed)
    lengths, parents = _random_pack(rng)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    tokens = np.arange(len(owner))
    lineage = (owner[:, None] == owner) | (np.array(parents)[owner][:, None] == owner)
    expected = lineage & (tokens[:, None] >= tokens)
    block = int(rng.choice([16, 32, 64]))
    layout = tables.layout(lengths, parents, "cpu", block, *((400, 40) if seed % 2 else (None, int(rng.integers(0, 70)))))
    assert layout.positions.tolist() == segment_positions(Segments.of(lengths, parents)).tolist()
    seen = np.zeros_like(expected, dtype=int)
    for first, end, start, prefix, prefix_end, _ in layout.queries.tolist():
        assert end - first <= block
        seen[first:end, start:end] += tokens[first:end, None] >= tokens[start:end]
        seen[first:end, prefix:prefix_end] += 1
    assert (seen == expected).all()
    heard, slots = np.zeros_like(seen), {}
    for first, end, near, near_end, far, far_end, slot, _ in layout.keys.tolist():
        heard[near:near_end, first:end] += tokens[near:near_end, None] >= tokens[first:end]
        heard[far:far_end, first:end] += 1
        if end > first and slot >= 0:
            assert slots.setdefault(slot, (first, end)) == (first, end)
    assert (heard == expected).all()
    joined = {slot: (first, end) for first, end, low, high in layout.joins.tolist() for slot in range(low, high)}
    assert joined == slots
    assert all(slot < layout.parts for slot in slots)
    lone = {(end - length, end) for length, end, parent, index in zip(lengths, np.cumsum(lengths), parents, range(len(lengths)))
            if length <= block and parent < 0 and index not in parents}  # fmt: skip
    for table in (layout.queries, layout.keys):
        assert {(row[0], row[1]) for row in table.tolist() if row[-1]} == lone


def test_children_of_a_prefix_that_are_not_side_by_side_are_refused():
    with pytest.raises(AssertionError, match="side by side"):
        tables.layout((4, 3, 2, 1), (-1, 0, -1, 0), "cpu", 16)


@pytest.mark.parametrize(
    ("lengths", "block"), [((35,) * 32, 64), ((63,) * 16, 64), ((25, 30, 20), 32), ((12, 9, 14), 16), ((900,), 64)]
)
def test_blocks_follow_lengths(lengths, block):
    assert tiles.choose_block(lengths, (-1,) * len(lengths), 64) == block
    assert tiles.choose_block(lengths, (-1,) * len(lengths), 32) == min(block, 32)


def test_short_children_of_a_long_prefix_have_long_blocks():
    assert tiles.choose_block((500,) + (12,) * 30, (-1,) + (0,) * 30, 64) == 64


def test_heads_that_no_block_fits_are_none_of_the_kernels(monkeypatch):
    """Of fp32 heads of 256 not even the smallest block fits the 64 KB of a T4."""
    monkeypatch.setattr(tiles, "shared_memory", lambda device: 64 * 1024)
    device = torch.device("cpu")
    assert tiles.largest_block(256, torch.float32, device) == 0
    assert tiles.largest_block(256, torch.float16, device) == 16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("size", "sliding_window", "turned"), [(64, None, False), (128, 300, False), (96, None, True)])
def test_a_captured_graph_follows_the_pack_and_repeats_itself(size, sliding_window, turned):
    packs = [((200,) + (35,) * 40 + (424,), (-1,) + (0,) * 40 + (-1,)), ((1000, 1024), (-1, -1)), ((1,) * 24 + (2000,), (-1,) * 25)]
    qkv, dout = _inputs(2024, 8, 2, size, "cuda", torch.bfloat16)
    angles = torch.rand(2024, size // 2, device="cuda").repeat(1, 2)
    turn = (angles.cos(), angles.sin()) if turned else ()
    static = tables.layout(*packs[0], "cuda", 64, blocks=100)
    options = {"sliding_window": sliding_window, "turn": turn}
    _actual(qkv, dout, static, **options)
    joined = torch.empty(2024, 12 * size, dtype=torch.bfloat16, device="cuda")
    slopes = [column.unflatten(1, x.shape[1:]) for column, x in zip(joined.split([8 * size, 2 * size, 2 * size], 1), qkv)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, lse = attention.segment_attention_forward(*qkv, static, 0.1, sliding_window, None, *turn)
        backward.segment_attention_backward(dout, *qkv, out, lse, static, 0.1, sliding_window, None, *slopes, *turn)
    for pack in packs:
        static.load(tables.layout(*pack, "cpu", 64, blocks=100))
        graph.replay()
        first = [x.clone() for x in (out, *slopes)]
        _agree(first, _expected(qkv, dout, pack, 0.1, **options))
        graph.replay()
        assert all(torch.equal(x, y) for x, y in zip(first, (out, *slopes)))
