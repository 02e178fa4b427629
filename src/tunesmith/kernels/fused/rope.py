"""Rotary position embedding in one pass: ``y = x · cos + rotate_half(x) · sin``, or its transpose for a gradient.

Su et al. 2021 (arXiv 2104.09864), in the half-split form of GPT-NeoX and Llama: with x₁, x₂ the halves of the rotated
part, ``y₁ = x₁ cos₁ − x₂ sin₁`` and ``y₂ = x₂ cos₂ + x₁ sin₂``; transposed, ``x₁ = y₁ cos₁ + y₂ sin₂`` and
``x₂ = y₂ cos₂ − y₁ sin₁``. Dimensions past the rotated ones are copied (partial rotary).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tunesmith.kernels.fused.kernel import kernel


def rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, backward: bool = False) -> Tensor:
    """x rotated to its positions (or, a gradient, rotated back) into ``out``, which may be x itself.

    Args:
        x, out: ``[T, H, D]``, any stride between tokens, a token's heads side by side.
        cos, sin: ``[T, R]`` with R ≤ D even, any stride between rows, any floating type; row t belongs to token t.
    """
    tokens, heads, size = x.shape
    rotated = cos.shape[1]
    assert x.stride()[1:] == out.stride()[1:] == (size, 1)
    assert cos.stride(1) == sin.stride(1) == 1
    share = min(8, triton.next_power_of_2(heads))
    rest = size - rotated
    _rotate[(tokens, triton.cdiv(heads, share))](
        x, cos, sin, out, heads, size, rotated // 2, x.stride(0), cos.stride(0), sin.stride(0), out.stride(0),
        BACKWARD=backward, HEADS=share, HALF=triton.next_power_of_2(rotated // 2),
        REST=triton.next_power_of_2(rest) if rest else 0, num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    return out


def rotate_plain(x: Tensor, cos: Tensor, sin: Tensor, backward: bool = False) -> Tensor:
    """The plain twin of `rotate`: transformers' formula, and autograd through it."""
    rotated = cos.shape[1]
    wide = x.detach().float().clone().requires_grad_()
    with torch.enable_grad():
        first, second = wide[..., :rotated].chunk(2, dim=-1)
        turned = wide[..., :rotated] * cos.float()[:, None] + torch.cat([-second, first], dim=-1) * sin.float()[:, None]
        y = torch.cat([turned, wide[..., rotated:]], dim=-1)
    if backward:  # linear in x, so the gradient at any point is the transpose
        y = torch.autograd.grad(y, wide, x.float())[0]
    return y.detach().to(x.dtype)


@kernel()
def _rotate(
    x, cos, sin, out, heads, size, half, x_stride, cos_stride, sin_stride, out_stride,
    BACKWARD: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """One token, HEADS of its heads. Everything is read before it is written over, so out may be x."""
    token = tl.program_id(0).to(tl.int64)
    x += token * x_stride
    out += token * out_stride
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    place = tl.arange(0, HALF)
    known = place < half
    cos_first = tl.load(cos + token * cos_stride + place, known, 0.0).to(tl.float32)[None, :]
    cos_second = tl.load(cos + token * cos_stride + half + place, known, 0.0).to(tl.float32)[None, :]
    sin_first = tl.load(sin + token * sin_stride + place, known, 0.0).to(tl.float32)[None, :]
    sin_second = tl.load(sin + token * sin_stride + half + place, known, 0.0).to(tl.float32)[None, :]
    slot = head * size + place[None, :]
    here = (head < heads) & known[None, :]
    first = tl.load(x + slot, here, 0.0).to(tl.float32)
    second = tl.load(x + slot + half, here, 0.0).to(tl.float32)
    if BACKWARD:
        new_first = first * cos_first + second * sin_second
        new_second = second * cos_second - first * sin_first
    else:
        new_first = first * cos_first - second * sin_first
        new_second = second * cos_second + first * sin_second
    tl.store(out + slot, new_first.to(out.dtype.element_ty), here)
    tl.store(out + slot + half, new_second.to(out.dtype.element_ty), here)
    if REST > 0:
        place = 2 * half + tl.arange(0, REST)[None, :]
        here = (head < heads) & (place < size)
        values = tl.load(x + head * size + place, here, 0.0)
        tl.store(out + head * size + place, values.to(out.dtype.element_ty), here)
