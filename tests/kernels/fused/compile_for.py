"""Compiles kernels for a GPU that need not be here and prints their names and the most shared memory one of them takes.

    python compile_for.py CAPABILITY BYTES_THERE DTYPE HEAD_DIM [every]

Those of attention, of documents as long as the largest block; or every kernel that a rehearsal names. Not a test: Triton's
interpreter, which the tests have switched on, compiles nothing, so this runs in a process of its own.
"""

import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tunesmith.kernels.fused import attention, attention_backward, attention_layout, attention_tiles, dropout, rehearsal, rope
from tunesmith.kernels.fused.kernel import Kernel
from tunesmith.kernels.segments import Segments

TYPES = {
    torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.int32: "i32", torch.int64: "i64",
    torch.uint8: "u8", int: "i32", float: "fp32",
}  # fmt: skip
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


def launch_every(dtype: torch.dtype, head_dim: int) -> None:
    """What a rehearsal of a model with joined and with separate linears launches, and what it leaves out."""
    widths = rehearsal.Widths(
        hidden=4 * head_dim, inner=8 * head_dim, heads=4, key_heads=2, head_dim=head_dim, vocab=1000, rank=8, groups=(1, 3),
        dropout=True, dtype=dtype, quantised=True,
    )  # fmt: skip
    for lengths, parents in (([40] * 4, [-1] * 4), ([500, 300, 400], [-1, 0, -1])):
        pack = Segments.of(lengths, parents)
        for task in (*rehearsal._forward_tasks(widths, pack, pack), *rehearsal._training_tasks(widths, pack)):
            task()
    launch_attention(dtype, head_dim)
    x, tables = torch.zeros(40, 4, head_dim, dtype=dtype), torch.zeros(2, 40, head_dim, dtype=dtype)
    for backward in (False, True):
        rope.rotate(x, *tables, x, backward)
    dropout.drop(x[:, 0], 0.5, torch.zeros(1, dtype=torch.int64), 0)


def launch_attention(dtype: torch.dtype, head_dim: int) -> None:
    """A forward and a backward pass of a prefix with so many children that programs share it."""
    block = attention_tiles.largest_block(head_dim, dtype, torch.device("cpu"))
    lengths = [2 * block, 20 * block]
    layout = attention_layout.layout(lengths, [-1, 0], "cpu", block)
    q, dout, dq = (torch.zeros(sum(lengths), 4, head_dim, dtype=dtype) for _ in range(3))
    k, v, dk, dv = (torch.zeros(sum(lengths), 2, head_dim, dtype=dtype) for _ in range(4))
    out, lse = attention.segment_attention_forward(q, k, v, layout, 0.1, None, None)
    attention_backward.segment_attention_backward(dout, q, k, v, out, lse, layout, 0.1, None, None, dq, dk, dv)


if __name__ == "__main__":
    capability, there, dtype, head_dim, *every = sys.argv[1:]
    attention_tiles.shared_memory = lambda device: int(there)  # this GPU's
    attention_tiles.is_hopper = lambda device: int(capability) // 10 == 9
    note_launches()
    (launch_every if every else launch_attention)(getattr(torch, dtype), int(head_dim))
    taken = [shared_memory(function, given, int(capability)) for function, given in LAUNCHED]
    print(*sorted({f"{function.fn.__module__.rpartition('.')[2]}.{function.fn.__name__}" for function, _ in LAUNCHED}), max(taken))
