# ruff: noqa: PT017, SIM105 (tables of hostile input, and errors looked at where they are caught)
"""Proves that no file, whatever is in it, ends in anything but what it says or an error of ours, within a second and 512 MB.

Each kind of file is drawn as one that is nearly right: a true one with something changed, or its own parts put together at
random. A few cases are part of every test run; `make soak` runs 100,000 (``SOAK_CASES``).
"""

import copy
import csv
import gc
import io
import json
import os
import resource
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.soak import record

from tunesmith.errors import TunesmithError

SECONDS, MEGABYTES = 1.0, 512
FEW = 25

# ---- what files are drawn from

words = st.sampled_from(
    ["", "a", "é\n", "\x00", "../x", "/etc/passwd", "prompt", "user", "<|im_end|>", "𝒳" * 50, "-1", "1e999", "~"]
)
numbers = st.sampled_from([0, 1, -1, 7, 2**31, 2**63, 2**64 - 1, -(2**63), 10**400, 0.5, float("inf"), float("nan"), 1e-400])
scalars = st.one_of(st.none(), st.booleans(), numbers, words, st.text(max_size=8))
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4), max_leaves=8)


def deep(count: int) -> str:
    return "[" * count + "]" * count


TRICKS = st.sampled_from(
    [
        deep(9),
        deep(5000),
        '{"a":' * 5000,
        "9" * 5000,
        "1e99999",
        '"\\ud800"',
        "NaN",
        "﻿{}",
        "\x00",
        "2026-02-31",
        "!!int x",
        "{",
        "'",
    ]
)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes of a true file of which some are gone, changed, doubled or others'."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(len(content) - 1, 0)))
        change = draw(st.sampled_from(["cut", "flip", "insert", "remove", "repeat", "huge"]))
        if change == "cut":
            del content[place:]
        elif change == "flip" and content:
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif change == "insert":
            content[place:place] = draw(st.binary(max_size=9))
        elif change == "remove":
            del content[place : place + draw(st.integers(1, 9))]
        elif change == "repeat":
            content[place:place] = content[place : place + 20]
        else:
            content[place : place + 8] = draw(st.sampled_from([2**63 - 1, 2**64 - 1, 2**40, 2**31, 0])).to_bytes(8, "little")
    return bytes(content)


@st.composite
def changed(draw: st.DrawFn, whole: Any) -> Any:
    """A true JSON value in which one thing stands for another."""
    whole = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 2))):
        place: Any = whole
        while isinstance(place, dict) and place:
            key = draw(st.sampled_from(sorted(place)))
            if isinstance(place[key], dict) and place[key] and draw(st.booleans()):
                place = place[key]
                continue
            if draw(st.integers(0, 3)):
                place[key] = draw(values)
            else:
                del place[key]
            break
        else:
            return draw(values)
        if draw(st.booleans()):
            place[draw(words)] = draw(values)
    return whole


def as_text(value: Any) -> str:
    """JSON, as YAML reads it too."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError):
        return "{}"


def written(drawn: Any) -> bytes:
    return drawn if isinstance(drawn, bytes) else (drawn if isinstance(drawn, str) else as_text(drawn)).encode("utf-8", "replace")


# ---- what reads them


@contextmanager
def bounded() -> Iterator[None]:
    """512 MB more than the process has, and a second of its time."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEGABYTES * 2**20, hard))
    begun = time.process_time()
    try:
        yield
    finally:
        took = time.process_time() - begun
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert took < SECONDS, f"{took:.1f} s"


counts: Counter[str] = Counter()


def read(what: str, reader: Callable[[], Any]) -> None:
    """Whatever is read is read, or refused with cause and next step."""
    counts[what] += 1
    if counts[what] % 100 == 0:
        gc.collect()  # or what thousands of cases left is swept within the second of one
    with bounded():
        try:
            reader()
        except TunesmithError as error:
            counts[f"{what} refused"] += 1
            assert error.what
            assert error.fix
            assert len(str(error)) < 5000, "no one reads so long an error"


def recipe_case(folder: Path) -> tuple[st.SearchStrategy[Any], Callable[[bytes], Any]]:
    from tunesmith.recipe import ALIASES, Recipe

    file = folder / "run.yaml"
    pairs = st.dictionaries(st.one_of(st.sampled_from(sorted(ALIASES)), words), values, max_size=4)
    bomb = "a: &a [x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 8)}]\n" for i in range(12)
    )
    bombs = st.sampled_from(
        [bomb, bomb + "lora_r: *m\n", "lora_r: &a [*a]", "? [a]\n: b", "<<: {a: 1}", "!!python/object:os.system {}"]
    )
    drawn = st.one_of(pairs, changed(Recipe().model_dump(mode="json")), bombs, TRICKS, st.text(max_size=60),
                      damaged(b"lora_r: 8\nlearning_rate: 1e-4\ndatasets:\n- path: a.jsonl\n  weight: 2\n"))  # fmt: skip

    def reader(content: bytes) -> None:
        file.write_bytes(content)
        Recipe.of(Recipe.read(file))

    return drawn, reader


ROW = {"prompt": "Wo?", "completion": "Da."}
TALK = {
    "messages": [
        {"role": "user", "content": "Wo?"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {"a": 1}}}]},
        {"role": "tool", "content": "x", "tool_call_id": "1"}, {"role": "assistant", "content": [{"type": "text", "text": "Da."}]},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
}  # fmt: skip


def data_case(suffix: str) -> Callable[[Path], tuple[st.SearchStrategy[Any], Callable[[bytes], Any]]]:
    def case(folder: Path) -> tuple[st.SearchStrategy[Any], Callable[[bytes], Any]]:
        from tunesmith.data.mixture import open_data
        from tunesmith.recipe import Recipe

        file = folder / f"rows{suffix}"
        recipe = Recipe(dataset_name=str(file))
        conversation = TALK["messages"][0] | {"more": {}}
        odd_talk = st.builds(lambda items: {"messages": items}, st.lists(changed(conversation), min_size=1, max_size=3))
        row = st.one_of(changed(ROW), changed(TALK), odd_talk, values)
        strategies = {".jsonl": lines_of(row), ".csv": csv_of(), ".parquet": parquet_of(row)}

        def reader(content: bytes) -> None:
            file.write_bytes(content)
            for _ in open_data(recipe, lambda error: None).conversations:
                pass

        return strategies[suffix], reader

    return case


def lines_of(row: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    line = st.one_of(row.map(as_text), TRICKS, st.text(max_size=30))
    true = "\n".join(map(as_text, [ROW, TALK, ROW])).encode()
    return st.one_of(st.lists(line, max_size=4).map("\n".join), damaged(true))


def csv_of() -> st.SearchStrategy[Any]:
    def table(cells: list[list[str]]) -> str:
        text = io.StringIO()
        csv.writer(text).writerows(cells)
        return text.getvalue()

    cells = st.lists(st.lists(words, max_size=4), max_size=4).map(lambda rows: table([["prompt", "completion"], *rows]))
    return st.one_of(cells, damaged(table([["prompt", "completion"], ["Wo?\n", 'a"b'], ["1", "2"]]).encode()), st.text(max_size=60))


def parquet_of(row: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def table(rows: list[Any]) -> bytes:
        sink = io.BytesIO()
        try:
            pq.write_table(pa.Table.from_pylist([row for row in rows if isinstance(row, dict)]), sink)
        except (pa.ArrowException, OverflowError, UnicodeError, ValueError, TypeError):
            return b"PAR1"
        return sink.getvalue()

    return st.one_of(st.lists(row, max_size=3).map(table), damaged(table([ROW, ROW])), damaged(table([TALK])))


def checkpoint_case(folder: Path) -> tuple[st.SearchStrategy[Any], Callable[[Any], Any]]:
    """Of a manifest that fits the files, whatever they are, and of one that does not."""
    import torch
    from safetensors.torch import save

    from tunesmith.training.checkpoint import newest_checkpoint, save_checkpoint
    from tunesmith.training.state import Best, Position, State

    tensors = {"x": torch.ones(4)}
    state = State(Position(3), tensors, tensors, {"0.step": 3}, {"cpu": torch.zeros(9).byte()}, Best(3, 0.1, tensors))
    made = save_checkpoint(folder, state, {"base": "b"}, b"{}\n")
    files = {path.name: path.read_bytes() for path in made.iterdir()}
    about, manifest, one = json.loads(files["state.json"]), json.loads(files["manifest.json"]), save(tensors)
    names = st.sampled_from(["adapter.safetensors", "optimizer.safetensors", "random.safetensors", "best.safetensors"])
    drawn = st.one_of(
        st.tuples(st.just("state.json"), changed(about).map(written)),
        st.tuples(st.just("state.json"), TRICKS.map(written)),
        st.tuples(names, st.one_of(damaged(one), safetensors_of())),
        st.tuples(st.just("manifest.json"), changed(manifest).map(written)),
        st.tuples(st.just("manifest.json"), TRICKS.map(written)),
    )

    def reader(case: tuple[str, bytes]) -> None:
        from hashlib import sha256

        name, content = case
        told = copy.deepcopy(manifest)
        if name != "manifest.json":
            told["files"][name] = {"sha256": sha256(content).hexdigest(), "bytes": len(content)}
            del told["sha256"]
            told["sha256"] = sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        for file, good in files.items():
            (made / file).write_bytes({"manifest.json": json.dumps(told).encode()}.get(file, good))
        (made / name).write_bytes(content)
        newest_checkpoint(folder)

    return drawn, reader


@st.composite
def safetensors_of(draw: st.DrawFn) -> bytes:
    """A header of any kind, of the length it says or another, and some bytes behind it."""
    tensor = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    header = draw(st.one_of(changed({"x": tensor, "__metadata__": {"format": "pt"}}).map(as_text), TRICKS)).encode(
        "utf-8", "replace"
    )
    length = draw(st.sampled_from([len(header), len(header), 0, 2**63 - 1, 2**64 - 1, 10**8, len(header) - 1]))
    return struct.pack("<Q", max(length, 0)) + header + b"\0" * draw(st.sampled_from([16, 0, 3]))


def adapter_case(folder: Path) -> tuple[st.SearchStrategy[Any], Callable[[Any], Any]]:
    """An adapter's config and tensors, opened upon a model of one linear layer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from tunesmith.base.adapter import open_adapter

    shape = LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    torch.manual_seed(0)
    get_peft_model(LlamaForCausalLM(shape), config).save_pretrained(folder)
    about, weights = json.loads((folder / "adapter_config.json").read_text()), (folder / "adapter_model.safetensors").read_bytes()
    drawn = st.one_of(
        st.tuples(st.one_of(changed(about).map(written), TRICKS.map(written)), st.just(weights)),
        st.tuples(st.just(written(about)), st.one_of(damaged(weights), safetensors_of())),
    )
    model = LlamaForCausalLM(shape)

    def reader(case: tuple[bytes, bytes]) -> None:
        (folder / "adapter_config.json").write_bytes(case[0])
        (folder / "adapter_model.safetensors").write_bytes(case[1])
        open_adapter(copy.deepcopy(model), folder)

    return drawn, reader


def gguf_bytes() -> bytes:
    """A small whole GGUF file: facts of every kind, two tensors."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    facts = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("general.alignment") + struct.pack("<II", 4, 32),
        text("llama.block_count") + struct.pack("<II", 4, 1),
        text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b"),
        text("tokenizer.ggml.scores") + struct.pack("<IIQ", 9, 6, 2) + struct.pack("<2f", 0, 1),
    ]
    tensors = [text("t") + struct.pack("<IQQIQ", 2, 4, 2, 0, 0), text("u") + struct.pack("<IQIQ", 1, 8, 0, 32)]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(facts)) + b"".join(facts + tensors)
    return head + b"\0" * (-len(head) % 32) + b"\0" * 64


def gguf_case(folder: Path) -> tuple[st.SearchStrategy[Any], Callable[[bytes], Any]]:
    import gguf

    from tunesmith.base.gguf_header import check_gguf

    file = folder / "model.gguf"
    counted = struct.Struct("<IQQ")
    heads = st.tuples(
        st.sampled_from([3, 2, 1, 2**31]), st.sampled_from([0, 1, 2**17, 2**63]), st.sampled_from([0, 1, 5, 2**64 - 1])
    )
    drawn = st.one_of(damaged(gguf_bytes()), heads.map(lambda head: b"GGUF" + counted.pack(*head) + gguf_bytes()[24:]))

    def reader(content: bytes) -> None:
        file.write_bytes(content)
        check_gguf(file)
        try:
            gguf.GGUFReader(file)  # what passes must be safe for what reads it next
        except (ValueError, KeyError, IndexError, struct.error):
            pass  # another version's rules; `from_gguf` says it in words

    return drawn, reader


CASES: dict[str, Callable[[Path], tuple[st.SearchStrategy[Any], Callable[[Any], Any]]]] = {
    "recipe": recipe_case, "jsonl": data_case(".jsonl"), "csv": data_case(".csv"), "parquet": data_case(".parquet"),
    "checkpoint": checkpoint_case, "adapter": adapter_case, "gguf": gguf_case,
}  # fmt: skip


def run(name: str, folder: Path, examples: int) -> None:
    drawn, reader = CASES[name](folder)

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=examples == FEW, suppress_health_check=list(HealthCheck)
    )
    @given(drawn)
    def body(case: Any) -> None:
        raw = case if isinstance(case, tuple) else written(case)
        read(name, lambda: reader(raw))

    body()


@pytest.mark.parametrize("name", CASES)
def test_no_file_ends_in_anything_but_itself_or_our_own_error(name: str, tmp_path: Path) -> None:
    run(name, tmp_path, FEW)


def test_the_reader_of_every_kind_reads_what_is_right(tmp_path: Path) -> None:
    """Or else nothing but refusals would be tested."""
    right = {
        "recipe": b"lora_r: 8\n", "jsonl": written(ROW), "csv": b"prompt,completion\na,b\n", "gguf": gguf_bytes(),
    }  # fmt: skip
    for name, content in right.items():
        CASES[name](tmp_path)[1](content)


@pytest.mark.soak
@pytest.mark.parametrize("name", CASES)
def test_very_many_files_end_in_nothing_but_themselves_or_our_own_error(name: str, tmp_path: Path) -> None:
    cases, before = int(os.environ.get("SOAK_CASES", 100_000)) // len(CASES) + 1, Counter(counts)
    begun = time.monotonic()
    run(name, tmp_path, cases)
    done = {key: counts[key] - before[key] for key in (name, f"{name} refused")}
    refused, seconds = done[f"{name} refused"], round(time.monotonic() - begun)
    record("fuzz", kind=name, cases=done[name], refused=refused, seconds=seconds)
