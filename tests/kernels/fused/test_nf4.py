"""Proves that a weight unpacked in one kernel is bitsandbytes' own, to the last bit."""

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

from tunesmith.kernels.factors import Behind

nf4 = pytest.importorskip("tunesmith.kernels.fused.nf4", reason="needs triton")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def _quantised(shape, device, dtype, blocksize=64, nested=True):
    weight = torch.randn(*shape).mul_(0.02).add_(torch.linspace(0, 0.1, shape[0])[:, None]).to(device, dtype)
    return quantize_4bit(weight, blocksize=blocksize, compress_statistics=nested, quant_type="nf4")


def _stored(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """fp32 values as the kernel stores them. The interpreter cuts bf16 off where a GPU rounds to nearest."""
    if dtype == torch.bfloat16 and values.device.type == "cpu":
        return (values.view(torch.int32) & -65536).view(torch.float32).to(dtype)
    return values.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nested", [True, False], ids=["double quantisation", "single"])
@pytest.mark.parametrize(
    ("shape", "blocksize"), [((64, 96), 64), ((7, 100), 64), ((2, 5), 64), ((130, 254), 64), ((33, 64), 128), ((5, 838), 4096)]
)
def test_values_are_bitsandbytes_to_the_bit(device, dtype, nested, shape, blocksize):
    packed, state = _quantised(shape, device, dtype, blocksize, nested)
    actual = nf4.dequantise(packed, state, dtype)
    assert actual.shape == shape
    assert torch.equal(actual, _stored(nf4.dequantise_plain(packed, state, torch.float32), dtype))
    if device == "cuda" or dtype == torch.float32:
        assert torch.equal(actual, dequantize_4bit(packed, state))


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_plain_twin_is_bitsandbytes(device, dtype, nested):
    packed, state = _quantised((64, 96), device, dtype, nested=nested)
    assert torch.equal(nf4.dequantise_plain(packed, state, dtype), dequantize_4bit(packed, state))


def test_scale_is_rounded_before_the_offset_is_added(device):
    """A fused multiply-add would round once: enough blocks that some scale would differ."""
    packed, state = _quantised((256, 512), device, torch.float32)
    inner = state.state2
    product = inner.code[state.absmax.long()].double() * inner.absmax.repeat_interleave(256)[: state.absmax.numel()]
    fused = (product + state.offset.double()).float()
    assert not torch.equal(fused, product.float() + state.offset)  # the trap is set
    assert torch.equal(nf4.dequantise(packed, state, torch.float32), dequantize_4bit(packed, state))


def test_result_type_need_not_be_the_stored_one(device):
    packed, state = _quantised((8, 64), device, torch.float16)
    assert torch.equal(nf4.dequantise(packed, state, torch.float32), nf4.dequantise_plain(packed, state, torch.float32))


@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float32])
def test_bytes_stored_as_another_type_are_read_as_bytes(device, storage):
    weight = torch.randn(16, 64, device=device)
    packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    assert torch.equal(nf4.dequantise(packed.flatten().view(storage), state, torch.float32), dequantize_4bit(packed, state))


def test_out_is_filled_and_returned(device):
    packed, state = _quantised((8, 64), device, torch.float32)
    out = torch.full((8, 64), torch.nan, device=device)
    assert nf4.dequantise(packed, state, torch.float32, out) is out
    assert torch.equal(out, dequantize_4bit(packed, state))


@pytest.mark.parametrize("nested", [True, False])
def test_rows_are_those_of_the_whole(device, nested):
    packed, state = _quantised((320, 192), device, torch.float32, nested=nested)  # more blocks than one inner group has
    whole = nf4.dequantise(packed, state, torch.float32)
    for rows in (slice(0, 64), slice(64, 192), slice(128, 320)):
        assert torch.equal(nf4.dequantise(packed, state, torch.float32, rows=rows), whole[rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [16, 48])
@pytest.mark.parametrize(("rank", "first"), [(8, 0), (5, 11), (16, 0)])
@pytest.mark.parametrize("rows", [slice(0, 320), slice(64, 320)], ids=["whole", "from a row on"])
def test_what_stands_behind_the_rows_is_written_with_them(device, dtype, columns, rank, first, rows):
    packed, state = _quantised((320, 192), device, dtype)
    everything = torch.randn(320, 24, device=device).to(dtype)
    behind = Behind(columns, first, everything[:, 3 : 3 + rank])  # whose rows are further apart than they are long
    out = torch.full((rows.stop - rows.start, 192 + columns), torch.nan, dtype=dtype, device=device)
    beyond = torch.full((8, 192 + columns), 7.0, dtype=dtype, device=device)
    memory = torch.cat([out, beyond])
    nf4.dequantise(packed, state, dtype, memory[: len(out)], rows, behind)
    assert torch.equal(memory[: len(out), :192], nf4.dequantise(packed, state, dtype)[rows])
    expected = torch.empty_like(out[:, 192:])
    behind.write(expected, rows)
    assert torch.equal(memory[: len(out), 192:], expected)
    assert torch.equal(memory[len(out) :], beyond)
    assert torch.equal(nf4.dequantise(packed, state, dtype, rows=rows, behind=behind), memory[: len(out)])
