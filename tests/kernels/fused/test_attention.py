"""Proves that attention over segments and its gradients are the plain twin's, for any cut of the tokens into segments."""

import time

import pytest
import torch

from tunesmith.kernels.attention import Segments, segment_attention_plain, segment_positions

attention = pytest.importorskip("tunesmith.kernels.fused.attention", reason="needs triton")
backward = pytest.importorskip("tunesmith.kernels.fused.attention_backward", reason="needs triton")

LONE = (1, 5, 33, 16, 2), (-1,) * 5
SHARED = (20, 17, 1, 30, 7, 40, 3, 18, 1), (-1, 0, 0, 0, -1, -1, 5, 5, -1)  # two prefixes, documents alone between
DEEP = (70, 130, 65), (-1, 0, -1)


def _inputs(tokens, heads, key_heads, size, device, dtype):
    """q, k, v: columns of one matrix, and the gradient of the output."""
    widths = [heads * size, key_heads * size, key_heads * size]
    wide = torch.randn(tokens, sum(widths) + 16, device=device).to(dtype)[:, 8:-8]
    parts = [part.unflatten(1, (-1, size)) for part in wide.split(widths, 1)]
    return parts, torch.randn(tokens, heads, size, device=device).to(dtype)


def _expected(parts, dout, pack, **options):
    q, k, v = (part.float().detach().requires_grad_() for part in parts)
    out = segment_attention_plain(q, k, v, Segments.of(*pack), **options)
    return out.detach(), *torch.autograd.grad(out, (q, k, v), dout.float())


def _actual(parts, dout, layout, scaling, sliding_window=None, softcap=None):
    q, k, v = parts
    out, lse = attention.segment_attention_forward(q, k, v, layout, scaling, sliding_window, softcap)
    joined = torch.full((q.shape[0], sum(part[0].numel() for part in parts) + 8), torch.nan, dtype=q.dtype, device=q.device)
    columns = joined[:, 4:-4].split([part[0].numel() for part in parts], 1)
    slopes = [column.unflatten(1, part.shape[1:]) for column, part in zip(columns, parts)]
    backward.segment_attention_backward(dout, q, k, v, out, lse, layout, scaling, sliding_window, softcap, *slopes)
    assert joined[:, :4].isnan().all()
    assert joined[:, -4:].isnan().all()
    return out, *slopes


def _agree(actual, expected):
    tolerance = {torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}[actual[0].dtype]
    for name, got, wanted in zip(("out", "dq", "dk", "dv"), actual, expected):
        scale = wanted.abs().max().item()
        torch.testing.assert_close(
            got.float(), wanted, rtol=tolerance, atol=tolerance * max(scale, 1), msg=lambda m, name=name: f"{name}: {m}"
        )


def _check(pack, device, block, heads=2, key_heads=2, size=16, dtype=torch.float32, blocks=None, parts=8, **options):
    parts_of, dout = _inputs(sum(pack[0]), heads, key_heads, size, device, dtype)
    layout = attention.layout(*pack, device, block, blocks, parts)
    options["scaling"] = 0.3
    _agree(_actual(parts_of, dout, layout, **options), _expected(parts_of, dout, pack, **options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pack", [LONE, SHARED])
def test_output_and_gradients_equal_the_plain_twin(device, pack, dtype):
    _check(pack, device, 16, heads=3, key_heads=1, size=24, dtype=dtype)


def test_segments_just_above_a_block(device):
    _check(DEEP, device, 32, heads=1, key_heads=1)
