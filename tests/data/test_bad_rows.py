"""Proves that no fault in a data file ends in a traceback, in silence or in a hang, and that skipping counts what it leaves out."""

import gzip
import json
import os
import subprocess
import sys
import textwrap
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.bad_rows import BadRows
from tunesmith.data.columns import Columns
from tunesmith.data.dataset import prepare
from tunesmith.data.formats import to_conversations
from tunesmith.data.row import ROW_LIMIT
from tunesmith.data.sources import load_rows
from tunesmith.errors import DataError, RowError, TunesmithError
from tunesmith.recipe import Recipe

GOOD = '{"prompt": "Where?", "completion": "There."}'
PAIR = Columns(prompt="prompt", completion="completion")

FAULTS = {
    "bad JSON": ('{"prompt": ', "line 2 is not JSON"),
    "trailing comma": ('{"prompt": "a", "completion": "b",}', "line 2 is not JSON"),
    "two rows on a line": (f"{GOOD} {GOOD}", "line 2 is not JSON: Extra data"),
    "a list": ("[1]", "line 2 is a list, not an object"),
    "NaN": ('{"prompt": "a", "completion": "b", "score": NaN}', "line 2 is not JSON: NaN is no JSON value"),
    "infinity": ('{"prompt": "a", "completion": "b", "score": -Infinity}', "line 2 is not JSON: -Infinity is no"),
    "a key twice": ('{"prompt": "a", "completion": "b", "prompt": "c"}', "line 2 is not JSON: the key 'prompt' stands there twice"),
    "a key twice within": ('{"prompt": "a", "completion": "b", "m": {"k": 1, "k": 2}}', "the key 'k' stands there twice"),
    "nested too deeply": ('{"prompt": ' + "[" * 100_000, "line 2 is not JSON: nested too deeply"),
    "latin-1": (b'{"prompt": "Gr\xf6\xdfe", "completion": "b"}', "line 2 is not UTF-8"),
    "NUL byte": (b'{"prompt": "a\0", "completion": "b"}', "line 2 is not JSON"),
    "NUL escaped": (r'{"prompt": "a\u0000", "completion": "b"}', "line 2, column 'prompt' holds a NUL character"),
    "half a character": (r'{"prompt": "a", "completion": "\ud83d"}', "line 2, column 'completion' holds half a character"),
    "null": ('{"prompt": "a", "completion": null}', "line 2, column 'completion' is empty"),
    "a number": ('{"prompt": "a", "completion": 3}', "line 2, column 'completion' is a number"),
    "empty": ('{"prompt": "a", "completion": ""}', "line 2 has no assistant text"),
    "another column": ('{"prompt": "a", "answer": "b"}', "line 2 has no 'completion'; it has prompt, answer."),
    "UTF-16": ('{"prompt": "a"}'.encode("utf-16-le"), "line 2 is not JSON: it holds NUL characters, as UTF-16 text does"),
    "printed by Python": ("{'prompt': 'a', 'completion': 'b'}", "line 2 is not JSON: its quotes are single ones"),
}


@pytest.fixture
def write(tmp_path):
    def file(name: str, *lines: str | bytes, end: str = "\n") -> str:
        path = tmp_path / name
        path.write_bytes(b"".join((x if isinstance(x, bytes) else x.encode()) + end.encode() for x in lines))
        return str(path)

    return file


def read(name: str, bad, columns: Columns = PAIR):
    return to_conversations(load_rows(name, bad=bad), columns, bad)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_row_at_fault_is_named_by_file_and_line_or_skipped_and_counted(write, fault):
    line, says = FAULTS[fault]
    path = write("rows.jsonl", GOOD, line, GOOD)
    with pytest.raises(RowError) as caught:
        to_conversations(load_rows(path), PAIR)
    assert f"{path} {says}" in caught.value.what or (path in caught.value.what and says in caught.value.what)
    assert "--on-bad-row skip" in caught.value.fix
    bad = BadRows()
    assert [c.where for c in read(path, bad)] == [f"{path} line 1", f"{path} line 3"]
    assert (bad.facts.count, len(bad.facts.reasons)) == (1, 1)
    assert says in bad.facts.describe()


def test_first_reasons_are_kept_and_the_rest_is_counted(write):
    bad = BadRows()
    assert len(read(write("rows.jsonl", GOOD, *["{"] * 1200), bad)) == 1
    assert bad.count == 1200
    said = bad.facts.describe()
    assert said.startswith("1,200 bad rows left out. ")
    assert said.count("is not JSON") == 5
    assert said.endswith("And 1,195 more.")


def test_nothing_left_out_is_not_mentioned():
    assert BadRows().facts.describe() == ""


def test_a_file_of_bad_rows_alone_is_refused_with_the_first_reason(write):
    path = write("rows.jsonl", "{", "[]")
    with pytest.raises(DataError, match=r"All 2 rows of .*rows.jsonl are bad. The first: .*line 1 is not JSON"):
        load_rows(path, bad=BadRows())


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"], ids=["unix", "windows", "old mac"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_line_endings_of_every_system_are_read(write, name, ending):
    lines = [GOOD, GOOD] if name.endswith("jsonl") else ["prompt,completion", "Where?,There.", "Where?,There."]
    assert len(load_rows(write(name, *lines, end=ending))) == 2


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv"])
@pytest.mark.parametrize("coding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_refused_by_name(write, name, coding):
    text = "\ufeff" + GOOD if coding != "utf-16" else GOOD
    with pytest.raises(DataError, match="is UTF-16, not UTF-8"):
        load_rows(write(name, text.encode(coding)))


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["a,b", "1,2", "1,2,3", "4,5"], "line 3 has 3 fields, the header has 2"),
        (["a,b", "1,2", '"1"x,2', "4,5"], "line 3: "),
        (["a,b", "1,2", b"\xff,2", "4,5"], "line 3 is not UTF-8"),
    ],
    ids=["ragged", "quote", "latin-1"],
)
def test_a_bad_row_of_a_csv_is_skipped_and_the_next_one_read(write, lines, says):
    bad = BadRows()
    rows = load_rows(write("rows.csv", *lines), bad=bad)
    assert [list(row.values.values()) for row in rows] == [["1", "2"], ["4", "5"]]
    assert says in bad.facts.describe()


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["a,a", "1,2"], "line 1: the header names 'a' twice"),
        (["a,b", "1,2", '1,"2'], "line 3: a quoted field of the row that begins here never ends"),
    ],
)
def test_what_spoils_a_whole_csv_is_not_skipped(write, lines, says):
    with pytest.raises(DataError, match=says):
        load_rows(write("rows.csv", *lines), bad=BadRows())


@pytest.mark.parametrize("fault", ['{"a": NaN}', '{"a": 1, "a": 2}', "7"])
def test_a_bad_row_of_a_json_list_is_skipped_by_its_number(write, fault):
    bad = BadRows()
    rows = load_rows(write("rows.json", '[{"a": 1},', f"{fault},", '{"a": 3}]'), bad=bad)
    assert [row.values for row in rows] == [{"a": 1}, {"a": 3}]
    assert "row 2" in bad.facts.describe()


@pytest.mark.parametrize("text", ['[{"a": 1}, {"a": 2},]', '[{"a": 1} {"a": 2}]', '[{"a": 1}', '[{"a": 1}] x', '[{"a": "'], ids=str)
def test_json_that_ends_or_goes_on_wrongly_is_refused_with_its_line(write, text):
    with pytest.raises(DataError, match=r"rows.json line 2: "):
        load_rows(write("rows.json", "\n" + text, end=""), bad=BadRows())


def test_a_gzip_cut_short_is_an_error_even_when_bad_rows_are_skipped(write):
    packed = gzip.compress((GOOD + "\n").encode() * 5000)
    with pytest.raises(DataError, match="damaged or cut short"):
        load_rows(write("rows.jsonl.gz", packed[: len(packed) // 2], end=""), bad=BadRows())


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=60) | st.text('{}[]",:\\u0anNtrue \n\r\t"prompt""completion"', max_size=60).map(str.encode))
@pytest.mark.parametrize("name", ["f.jsonl", "f.json", "f.csv", "f.tsv", "f.jsonl.gz", "f.parquet"])
def test_no_bytes_at_all_end_in_anything_but_rows_or_our_own_error(tmp_path_factory, name, data):
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    for bad in (BadRows(), BadRows("error")):
        with suppress(TunesmithError):
            to_conversations(load_rows(str(path), bad=bad), PAIR, bad)


# ---- what is no file


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match="is a pipe, not a file"):
        load_rows(str(tmp_path / "rows.jsonl"))
    with pytest.raises(DataError, match="is a pipe, not a file"):
        load_rows(str(tmp_path))


def test_a_device_is_refused():
    with pytest.raises(DataError, match="/dev/zero is a device, not a file"):
        load_rows("/dev/zero")


def test_links_in_a_circle_or_to_nowhere_are_refused(tmp_path):
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "b.jsonl")
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "a.jsonl")
    (tmp_path / "c.jsonl").symlink_to(tmp_path / "none")
    for name in ("a.jsonl", "c.jsonl", ""):
        with pytest.raises(DataError, match="a link that leads nowhere"):
            load_rows(str(tmp_path / name))


@pytest.mark.parametrize("name", ["./" + "x" * 5000 + ".jsonl", "./a\0b.jsonl"], ids=["too long", "NUL"])
def test_a_path_that_cannot_be_is_refused(name):
    with pytest.raises(DataError, match="There is no file"):
        load_rows(name)


# ---- parquet


def test_types_within_types_are_read_and_padding_is_not(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    messages = [
        [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b", "tool_calls": [{"name": "f", "arguments": {"x": "1"}}]},
        ],
        [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b", "tool_calls": [{"name": "g", "arguments": {"y": "2"}}]},
        ],
    ]
    table = pa.Table.from_pylist([{"messages": m, "when": 10**18, "raw": b"\xff", "map": {"k": 1}} for m in messages])
    pq.write_table(table, tmp_path / "rows.parquet")
    rows = load_rows(str(tmp_path / "rows.parquet"))
    assert [row.values["messages"] for row in rows] == messages  # Arrow gave every call both arguments, one of them null


def test_a_parquet_row_that_is_no_text_is_skipped_by_its_number(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffb")]
    )
    pq.write_table(pa.table({"text": texts}), tmp_path / "rows.parquet")
    bad = BadRows()
    assert [row.values["text"] for row in load_rows(str(tmp_path / "rows.parquet"), bad=bad)] == ["a", "b"]
    assert "row 2 cannot be read" in bad.facts.describe()


# ---- very large


def test_a_line_beyond_the_limit_is_refused_or_skipped_and_the_next_one_read(write):
    path = write("rows.jsonl", GOOD, '{"prompt": "' + "x" * ROW_LIMIT + '"}', GOOD)
    with pytest.raises(RowError, match="line 2 is longer than 4,194,304 characters"):
        load_rows(path)
    bad = BadRows()
    assert [row.where for row in load_rows(path, bad=bad)] == [f"{path} line 1", f"{path} line 3"]


def test_a_cell_beyond_the_limit_is_refused_wherever_it_comes_from(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a", "x" * (ROW_LIMIT + 1)]}), tmp_path / "rows.parquet")
    bad = BadRows()
    assert len(read(str(tmp_path / "rows.parquet"), bad, Columns(text="text"))) == 1
    assert "row 2, column 'text' is longer than 4,194,304 characters" in bad.facts.describe()


def _peak(code: str, path: str) -> int:
    """Bytes of the largest resident size of a process that runs the code over a file."""
    script = textwrap.dedent(
        """
        import resource, sys
        from tunesmith.data.bad_rows import BadRows
        from tunesmith.data.sources import iter_rows
        start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        """
    ) + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    return int(done.stdout) * 1024


ITERATE = """
    bad = BadRows()
    assert sum(1 for _ in iter_rows(sys.argv[1], bad=bad)) == {rows}, bad.facts
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)
"""


def test_a_row_of_60_megabytes_never_stands_in_memory(write):
    path = write("rows.jsonl", GOOD, '{"prompt": "' + "x" * 60_000_000 + '"}', GOOD)
    assert _peak(ITERATE.format(rows=2), path) < 60e6


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.jsonl.gz"])
def test_a_file_of_many_rows_is_read_in_little_memory(tmp_path, name):
    row = json.dumps({"prompt": "Where? " * 200, "completion": "There. " * 200})
    count, path = 40_000, tmp_path / name
    with gzip.open(path, "wt") if name.endswith(".gz") else path.open("w") as file:
        if name.endswith(".csv"):
            file.write("prompt,completion\n" + ("Where? " * 200 + "," + "There. " * 200 + "\n") * count)
        elif name.endswith(".json"):
            file.write("[" + ",\n".join([row] * count) + "]")
        else:
            file.write((row + "\n") * count)
    assert _peak(ITERATE.format(rows=count), str(path)) < 20e6


# ---- through the whole preparation


def test_rows_left_out_are_told_with_the_facts_of_the_data(write, renderer_of):
    path = write("rows.jsonl", GOOD, "{", '{"prompt": "a", "completion": ""}', GOOD)
    renderer = renderer_of("chatml")
    facts = prepare(Recipe.of({"dataset_name": path, "on_bad_row": "skip"}), renderer, 512).facts
    assert facts.rows == 2
    assert facts.bad.count == 2
    assert "line 2 is not JSON" in facts.bad.reasons[0]
    assert "line 3 has no assistant text" in facts.bad.reasons[1]
    with pytest.raises(RowError, match="line 2 is not JSON"):
        prepare(Recipe.of({"dataset_name": path}), renderer, 512)


def test_rows_the_template_refuses_are_bad_rows_too(write, renderer_of):
    pair = '{"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}'
    good = '{"messages": [' + pair + "]}"
    system = '{"messages": [{"role": "system", "content": "a"}, ' + pair + "]}"
    path = write("rows.jsonl", good, system, good)
    facts = prepare(Recipe.of({"dataset_name": path, "on_bad_row": "skip"}), renderer_of("gemma"), 512).facts
    assert (facts.rows, facts.bad.count) == (2, 1)
    assert "line 2: The chat template refuses a conversation of system" in facts.bad.reasons[0]


def test_bad_held_out_rows_are_told_too(write, renderer_of):
    held = write("held.jsonl", GOOD, "{")
    recipe = Recipe.of({"dataset_name": write("rows.jsonl", GOOD), "eval_dataset": held, "on_bad_row": "skip"})
    data = prepare(recipe, renderer_of("chatml"), 512)
    assert data.facts.held_out == 1
    assert any("held out: 1 bad row left out" in note for note in data.facts.notes)
