"""Proves that the fused rotation is transformers', that its backward is the transpose, and that strides are honoured."""

import pytest
import torch

rope = pytest.importorskip("tunesmith.kernels.fused.rope", reason="needs triton")

CASES = [(7, 5, 96, 96), (7, 5, 96, 72), (1, 1, 64, 64), (3, 9, 80, 32), (2, 32, 128, 128), (4, 2, 6, 2)]


def _inputs(tokens, heads, size, rotated, device, dtype):
    wide = torch.randn(tokens, heads * size + 40, device=device).to(dtype)
    cos, sin = torch.randn(2, tokens, rotated, device=device).to(dtype)  # no angle has these: the halves differ
    return wide[:, 8 : 8 + heads * size].view(tokens, heads, size), cos, sin


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_rotation_equals_the_plain_twin(device, agree, case, dtype, backward):
    x, cos, sin = _inputs(*case, device, dtype)
    out = torch.full(x.shape, torch.nan, dtype=dtype, device=device)
    assert rope.rotate(x, cos, sin, out, backward) is out
    agree(out, rope.rotate_plain(x, cos, sin, backward))
    assert torch.equal(out[..., case[3] :], x[..., case[3] :])


def test_rotation_is_transformers(device):
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    x, *_ = _inputs(7, 5, 64, 64, device, torch.float32)
    angles = torch.outer(torch.arange(7.0), 10000 ** -(torch.arange(32.0) / 32)).repeat(1, 2).to(device)
    heads_first = x.transpose(0, 1)[None]
    expected, _ = apply_rotary_pos_emb(heads_first, heads_first, angles.cos()[None], angles.sin()[None])
    actual = rope.rotate(x, angles.cos(), angles.sin(), torch.empty(7, 5, 64, device=device))
    torch.testing.assert_close(actual, expected[0].transpose(0, 1), rtol=1e-5, atol=1e-5)


def test_out_may_be_columns_of_a_wider_matrix_and_nothing_else_is_written(device, agree):
    x, cos, sin = _inputs(7, 5, 96, 72, device, torch.float32)
    wide = torch.full((7, 600), 3.0, device=device)
    rope.rotate(x, cos, sin, wide[:, 50:530].view(7, 5, 96), backward=True)
    agree(wide[:, 50:530].view(7, 5, 96), rope.rotate_plain(x, cos, sin, backward=True))
    assert (wide[:, :50] == 3).all()
    assert (wide[:, 530:] == 3).all()


def test_in_place_and_fp32_angles_for_a_half_precision_x(device, agree):
    x, cos, sin = _inputs(3, 4, 32, 16, device, torch.bfloat16)
    expected = rope.rotate_plain(x, cos.float() * 1.001, sin.float())
    agree(rope.rotate(x, cos.float() * 1.001, sin.float(), x), expected)


def test_rotating_back_undoes_a_true_rotation(device):
    x, *_ = _inputs(5, 3, 32, 32, device, torch.float32)
    angles = torch.randn(5, 16, device=device).repeat(1, 2)
    there = rope.rotate(x, angles.cos(), angles.sin(), torch.empty(5, 3, 32, device=device))
    back = rope.rotate(there, angles.cos(), angles.sin(), torch.empty_like(there), backward=True)
    torch.testing.assert_close(back, x.contiguous(), rtol=1e-5, atol=1e-5)
