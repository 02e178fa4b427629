"""Proves that text files are read as what they are, or refused with the line, the reason and what to do: odd ones of every kind."""

import gzip
import json
from pathlib import Path

import pytest

from tunesmith.data.bad_rows import BadRows
from tunesmith.data.row import ROW_LIMIT
from tunesmith.data.sources import load_rows
from tunesmith.errors import DataError, RowError

ROWS = [{"prompt": f"Where is {n}?", "completion": f"There is {n}."} for n in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a file into the working folder; its name."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, content: str | bytes) -> str:
        Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
        return name

    return write


def values(name: str) -> list[dict]:
    return [row.values for row in load_rows(name)]


def test_byte_order_marks_of_files_that_were_put_together_are_no_text(file):
    assert values(file("a.jsonl", "\ufeff".join(["", *LINES.splitlines(keepends=True)]))) == ROWS


@pytest.mark.parametrize("content", [json.dumps(ROWS), json.dumps(ROWS, indent=1), "\n[" + LINES.replace("\n", ",")])
def test_a_json_list_under_a_jsonl_name_is_told_from_bad_rows(file, content):
    name = file("a.jsonl", content.lstrip())
    with pytest.raises(DataError, match=r"a.jsonl line 1 begins a list") as caught:
        load_rows(name, bad=BadRows())
    assert ".json;" in caught.value.fix


@pytest.mark.parametrize("between", ["\n", "\n\n", "\r\n"])
def test_json_lines_under_a_json_name_are_rows(file, between):
    assert values(file("a.json", between + between.join(map(json.dumps, ROWS)))) == ROWS


def test_objects_over_several_lines_one_after_another_are_told_from_bad_rows(file):
    name = file("a.json", "\n".join(json.dumps(row, indent=1) for row in ROWS))
    with pytest.raises(DataError, match=r"a.json line 5: another value begins"):
        load_rows(name, bad=BadRows())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"train": ROWS, "test": ROWS[:1]}, r"several lists of rows: train, test\."),
        ({"prompt": ["a", "b"], "completion": ["c", "d"]}, r"a list for each column \(prompt, completion\)"),
        ({"prompt": {"0": "a", "1": "b"}, "completion": {"0": "c", "1": "d"}}, r"an object of objects \(prompt, completion\)"),
        ({str(n): row for n, row in enumerate(ROWS)}, r"an object of objects \(0, 1, 2\)"),
        ({str(n): ROWS[0] for n in range(5000)}, r"11 and 4,988 more\)"),
    ],
)
def test_json_in_other_shapes_is_named_for_what_it_is(file, content, says):
    with pytest.raises(DataError, match=says):
        load_rows(file("a.json", json.dumps(content)))


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "a"}], "tools": [{"name": "f"}]},
        {"conversations": [{"from": "human", "value": "a"}], "tags": ["b"]},
        {"prompt": "a", "tags": ["b"], "notes": []},
        {"messages": [{"role": "assistant", "tool_calls": []}]},
        {"messages": [{"role": "user", "content": "a"}, {"content": "no role"}]},
    ],
)
def test_one_object_that_holds_lists_is_one_row(file, row):
    assert values(file("a.json", json.dumps(row))) == [row]


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("more", [{"from": "en"}, {"role": "teacher"}, {"role": "user", "content": "x"}], ids=str)
def test_rows_within_an_object_are_rows_even_if_some_have_columns_as_messages_do(file, more, place):
    rows = [dict(row) for row in ROWS]
    rows[place] |= more if place or "content" not in more else {}
    assert values(file("a.json", json.dumps({"version": 2, "rows": rows}))) == rows


@pytest.mark.parametrize("suffix", ["", ",\n  "])
def test_a_row_of_a_json_list_that_is_too_long_is_left_out_alone(file, suffix):
    long = {"prompt": '"], [\\' + "x" * 3 * ROW_LIMIT, "completion": ["{", {"a": "}"}]}
    content = ",\n  ".join(map(json.dumps, [ROWS[0], long, ROWS[1]])) + (suffix + json.dumps(long) if suffix else "")
    name, bad = file("a.json", f"[{content}]"), BadRows()
    rows = list(load_rows(name, bad=bad))
    assert [(row.values, row.where) for row in rows] == [(ROWS[0], "a.json row 1"), (ROWS[1], "a.json row 3")]
    reason = " is longer than 4,194,304 characters, more than can be trained on at once."
    assert bad.facts.reasons == tuple(f"a.json row {number}{reason}" for number in ((2, 4) if suffix else (2,)))
    with pytest.raises(RowError, match=r"a.json row 2 is longer than"):
        load_rows(name)


def test_a_gz_that_is_none_says_so(file):
    with pytest.raises(DataError, match=r"a.jsonl.gz is not gzip\. Take .gz off its name"):
        load_rows(file("a.jsonl.gz", LINES))


@pytest.mark.parametrize(
    ("name", "header", "says"),
    [
        ("a.tsv", "prompt;completion", r"one column, 'prompt;completion': its fields are separated by ';', not '\\t'"),
        ("a.csv", "prompt\tcompletion", r"separated by '\\t', not ','"),
        ("a.tsv", "prompt,completion", r"separated by ',', not '\\t'"),
        ("a.csv", "prompt, completion", "space around the column name ' completion'"),
        ("a.csv", "prompt,prompt", "the header names 'prompt' twice"),
    ],
)
def test_a_header_under_which_all_rows_would_be_wrong_ends_the_reading(file, name, header, says):
    with pytest.raises(RowError, match=rf"{name} line 1: .*{says}"):
        load_rows(file(name, f"{header}\na,b\n"), bad=BadRows())


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ","), ("A.CSV", ","), ("a.tsv", "\t"), ("A.TSV.gz", "\t")])
def test_the_ending_says_what_separates_whatever_its_case(file, name, separator):
    text = f"\ufeffprompt{separator}completion\r\na;b{separator}c d\r\n".encode()
    assert values(file(name, gzip.compress(text) if name.endswith("gz") else text)) == [{"prompt": "a;b", "completion": "c d"}]


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_a_csv_file_that_a_spreadsheet_separated_by_semicolons_is_read_so_and_told(file, name):
    text = '\ufeff\r\nprompt;"com,ple;tion"\r\nOne, two;"a;b ""c"""\r\n"x\r\ny;";\r\n'.encode()
    rows = load_rows(file(name, gzip.compress(text) if name.endswith("gz") else text))
    assert [row.values for row in rows] == [
        {"prompt": "One, two", "com,ple;tion": 'a;b "c"'}, {"prompt": "x\r\ny;", "com,ple;tion": ""},
    ]  # fmt: skip
    assert [row.where for row in rows] == [f"{name} line 3", f"{name} line 4"]
    assert [row.note for row in rows] == [f"{name} is separated by ';', not by commas", ""]


@pytest.mark.parametrize("row", ["c", "c;d;e", "c,d"])
def test_semicolons_in_a_header_alone_separate_nothing_even_if_bad_rows_are_left_out(file, row):
    with pytest.raises(DataError, match=r"a\.csv line 3 has \d fields, the header has 2\. .* or separate all of them by commas"):
        load_rows(file("a.csv", f"prompt;completion\na;b\n{row}\n"), bad=BadRows())


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("a;b,c\n1;2,3;4\n", {"a;b": "1;2", "c": "3;4"}),
        ("text\n1;2\n", {"text": "1;2"}),
        ('"a;b",c\n1;2,3\n', {"a;b": "1;2", "c": "3"}),
        ('"a;\nb",c\n1;2,3\n', {"a;\nb": "1;2", "c": "3"}),
    ],
)
def test_semicolons_in_a_table_of_commas_are_text(file, text, read):
    (row,) = load_rows(file("a.csv", text))
    assert (row.values, row.note) == (read, "")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_no_row_is_taken_for_a_header_that_is_too_long(file, name):
    with pytest.raises(DataError, match=rf"{name} line 1 is longer than"):
        load_rows(file(name, "prompt," + "x" * ROW_LIMIT + "\na,b\nc,d\n"), bad=BadRows())


def test_how_to_go_on_without_a_row_that_is_too_long_is_told_once(file):
    with pytest.raises(RowError, match=r"line 2 is longer than") as caught:
        load_rows(file("a.csv", "prompt,completion\n" + "x" * ROW_LIMIT + ",b\nc,d\n"))
    assert caught.value.fix.count("--on-bad-row skip") == 1


def test_one_column_is_a_table_too(file):
    assert values(file("a.csv", "text\none\ntwo\n")) == [{"text": "one"}, {"text": "two"}]


def test_the_header_of_a_table_that_was_put_behind_another_is_no_row(file):
    table = "\ufeffprompt,completion\na,b\n"
    bad = BadRows()
    assert len(load_rows(file("a.csv", table * 3), bad=bad)) == 3
    assert bad.facts.reasons == ("a.csv line 3 is the header again.", "a.csv line 5 is the header again.")


def test_a_row_of_several_lines_is_named_by_its_first(file):
    bad = BadRows()
    rows = load_rows(file("a.csv", 'a,b\n"1\n\n2",3\n\n"4\n5",6,7\n8,9\n'), bad=bad)
    assert [row.where for row in rows] == ["a.csv line 2", "a.csv line 8"]
    assert bad.facts.reasons == ("a.csv line 6 has 3 fields, the header has 2.",)


def test_a_quote_that_never_closes_is_named_by_the_row_it_opens_in(file):
    with pytest.raises(DataError, match=r"a.csv line 3: a quoted field of the row that begins here never ends"):
        load_rows(file("a.csv", 'a,b\n1,2\n"3,4\n' + "5,6\n" * 1000))


@pytest.mark.parametrize(
    "text",
    ["x\n" * (ROW_LIMIT // 2 + 1), "x" * (ROW_LIMIT + 1) + "\nx", "x\n" + "x" * (ROW_LIMIT + 1), 'x"",\n' * (ROW_LIMIT // 2)],
    ids=["of many lines", "a long line first", "a long line later", "quotes"],
)
def test_a_quoted_field_that_is_too_long_ends_the_reading_since_nobody_knows_where_the_next_row_begins(file, text):
    bad = BadRows()
    with pytest.raises(DataError, match=r"a.csv line 3: the row that begins here is longer than 4,194,304 characters"):
        load_rows(file("a.csv", f'a,b\n1,2\n3,"{text}"\n5,6\n'), bad=bad)
    assert bad.count == 0


@pytest.mark.parametrize("quote", ["", '"'])
def test_a_row_of_one_line_that_is_too_long_is_left_out_alone(file, quote):
    bad = BadRows()
    rows = load_rows(file("a.csv", f"a,b\n1,{quote}{'x' * (ROW_LIMIT + 1)}{quote}\n3,4\n"), bad=bad)
    assert [row.where for row in rows] == ["a.csv line 3"]
    assert "a.csv line 2 is longer than" in bad.facts.describe()


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark_is_told_from_bad_rows(file, name, encoding):
    text = {"a.jsonl": LINES, "a.json": json.dumps(ROWS), "a.csv": "prompt,completion\na,b\n"}[name]
    with pytest.raises(DataError, match=f"{name} is UTF-16"):
        load_rows(file(name, text.encode(encoding)), bad=BadRows())


def test_a_comma_behind_an_object_is_named(file):
    with pytest.raises(RowError, match=r"a\.jsonl line 1 is not JSON: a comma stands behind the object"):
        load_rows(file("a.jsonl", LINES.replace("\n", ",\n")))


def test_a_comma_before_the_end_of_a_list_is_named_with_its_line(file):
    with pytest.raises(DataError, match=r"a\.json line 2: A comma stands before the end of the list"):
        load_rows(file("a.json", '[{"prompt": "a"},\n]'))


def test_conversations_without_a_name_are_told_where_to_stand(file):
    with pytest.raises(RowError, match=r"a\.json row 1 is a list of messages") as caught:
        load_rows(file("a.json", json.dumps([[{"role": "user", "content": "a"}]])))
    assert '{"messages": […]}' in caught.value.fix


def test_the_line_that_tells_excel_the_separator_is_no_header(file):
    with pytest.raises(RowError, match=r"a\.csv line 1 tells Excel the separator") as caught:
        load_rows(file("a.csv", "sep=,\nprompt,completion\na,b\n"))
    assert caught.value.fix.startswith("Remove the line")
