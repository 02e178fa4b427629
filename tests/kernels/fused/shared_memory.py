"""Compiles the attention kernels for a GPU that need not be here and prints the most shared memory one of them takes.

    python shared_memory.py CAPABILITY BYTES_THERE DTYPE HEAD_DIM

Not a test: Triton's interpreter, which the tests have switched on, compiles nothing, so this runs in a process of its own.
"""

import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tunesmith.kernels.fused import attention, attention_backward, attention_layout, attention_tiles
from tunesmith.kernels.fused.kernel import Kernel

TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.int32: "i32", int: "i32", float: "fp32"}
LAUNCHED: list[tuple[Any, dict[str, Any]]] = []


def note_launches() -> None:
    """Kernels note what they are launched with instead of being launched."""

    def getitem(self: Kernel, grid: Any) -> Any:
        return lambda *given, **named: LAUNCHED.append((self.function, {**dict(zip(self.function.arg_names, given)), **named}))

    Kernel.__getitem__ = getitem  # type: ignore[method-assign]


def shared_memory(function: Any, given: dict[str, Any], capability: int) -> int:
    given = {**given, "WIDEN": False}  # that is the interpreter's
    constants = {p.name: given[p.name] for p in function.params if p.is_constexpr}
    kinds = {name: "constexpr" if name in constants else _kind(given[name]) for name in function.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(kinds.values()) if kind.startswith("*")}
    options = {name: given[name] for name in ("num_warps", "num_stages", "enable_fp_fusion") if name in given}
    source = ASTSource(function, kinds, constants, aligned)
    return int(triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).metadata.shared)


def _kind(value: Any) -> str:
    return f"*{TYPES[value.dtype]}" if isinstance(value, torch.Tensor) else TYPES[type(value)]


def launch_all(dtype: torch.dtype, head_dim: int) -> None:
    """A forward and a backward pass of documents as long as the largest block."""
    block = attention_tiles.largest_block(head_dim, dtype, torch.device("cpu"))
    layout = attention_layout.layout([2 * block] * 2, [-1] * 2, "cpu", block)
    q, dout, dq = (torch.zeros(4 * block, 4, head_dim, dtype=dtype) for _ in range(3))
    k, v, dk, dv = (torch.zeros(4 * block, 2, head_dim, dtype=dtype) for _ in range(4))
    out, lse = attention.segment_attention_forward(q, k, v, layout, 0.1, None, None)
    attention_backward.segment_attention_backward(dout, q, k, v, out, lse, layout, 0.1, None, None, dq, dk, dv)


if __name__ == "__main__":
    capability, there, dtype, head_dim = sys.argv[1:]
    attention_tiles.shared_memory = lambda device: int(there)  # this GPU's
    note_launches()
    launch_all(getattr(torch, dtype), int(head_dim))
    print(max(shared_memory(function, given, int(capability)) for function, given in LAUNCHED))
