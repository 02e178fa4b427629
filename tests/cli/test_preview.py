"""Proves what `tunesmith preview` prints, writes and returns: exit codes, JSON alone, pages kept, nothing obeyed by a terminal."""

import io
import json
import os
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tunesmith.cli.main import main
from tunesmith.cli.preview_words import share
from tunesmith.cli.visible import on_one_line, visible
from tunesmith.recipe import Recipe

ROWS = [
    {"prompt": f"Why is it that the {s} {v}?", "completion": f"It was so that the {s} {v} before."}
    for s in ("wind", "river", "bridge", "camp", "table") for v in ("is cold", "can walk", "may speak")
]  # fmt: skip
EVIL = "\x1b[31mred\x1b[0m \x07 \x9b31m \u202eevil\u202c <script>alert(1)</script> & \"q\" 'q' [bold]b[/bold]"


@pytest.fixture(autouse=True)
def here(tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model whose weights cannot be read, and good rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    shutil.copytree(tiny_model_folder, "model")
    Path("model/model.safetensors").write_bytes(b"cannot be read")
    write("rows.jsonl", *ROWS)
    return tmp_path


def write(name: str, *rows: Any) -> None:
    Path(name).write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs the command; its exit code and standard output."""

    def run(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = main(["preview", "model", *arguments])
        return code, capsys.readouterr().out

    return run


def test_good_rows_are_exit_code_0_without_weights(told: Callable[..., tuple[int, str]]) -> None:
    code, out = told("rows.jsonl")
    assert code == 0
    assert "Verdict: good." in out
    assert "Next: tunesmith train model rows.jsonl\n" in out
    assert "⟦It was so that the wind is cold before.<|im_end|>⟧" in out
    for word in ("rows.jsonl line 1", "median", "15 to train on", "packing", "shared prefix", "stop token", "refuse", "'prompt'"):
        assert word in out
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", out), "no colour and no control character where nobody asked"


def test_what_needs_a_look_is_exit_code_0_and_names_the_setting_to_change(told: Callable[..., tuple[int, str]]) -> None:
    shortest = json.loads(told("rows.jsonl", "--json")[1])["cut"]["shortest"]
    code, out = told("rows.jsonl", "--cutoff-len", str(shortest - 3))
    assert code == 0
    assert "Verdict: look at this." in out
    (length,) = re.findall(r"Next: tunesmith train model rows.jsonl --max-length (\d+)\n", out)
    assert "✂" in out
    assert "Verdict: good." in told("rows.jsonl", "--max-length", length)[1]


@pytest.mark.parametrize(
    ("rows", "more", "then"),
    [
        (ROWS, ["--max-length", "3"], "tunesmith preview model rows.jsonl --max-length "),
        ([*ROWS, {"prompt": "a", "completion": ""}], [], "tunesmith train model rows.jsonl --on-bad-row skip"),
        (
            ROWS,
            ["--prompt", "promt", "--input-column=promt", "--completion", "answer"],
            "tunesmith preview model rows.jsonl --prompt prompt --completion completion\n",
        ),
        ([{"left": "a", "right": "b"}] * 3, [], "tunesmith preview model rows.jsonl --prompt left --completion right\n"),
    ],
)
def test_what_will_not_train_is_exit_code_1_and_the_next_command_mends_it(
    told: Callable[..., tuple[int, str]], rows: list[Any], more: list[str], then: str
) -> None:
    write("rows.jsonl", *rows)
    code, out = told("rows.jsonl", *more)
    assert code == 1
    assert "Verdict: will not train." in out
    assert f"Next: {then}" in out
    mended = out.split("Next: tunesmith ")[1].split()
    assert main(["preview", *mended[1:]]) == 0


def test_where_no_setting_mends_it_the_command_comes_after_the_mending(told: Callable[..., tuple[int, str]]) -> None:
    write("rows.jsonl")
    code, out = told("rows.jsonl")
    assert code == 1
    assert "When that is mended: tunesmith preview model rows.jsonl\n" in out
    assert "Next:" not in out
    mixture = {"model": "model", "datasets": [{"path": "mixed.jsonl", "prompt": "promt", "completion": "completion"}]}
    write("mixed.jsonl", *ROWS)
    write("run.yaml", mixture)
    assert main(["preview", "run.yaml"]) == 1, "a mixture names its columns itself"


def test_where_only_the_user_knows_the_columns_no_command_with_a_gap_is_the_next_one(told: Callable[..., tuple[int, str]]) -> None:
    write("rows.jsonl", *[{"a": 1, "b": 2, "c": 3}] * 3)
    assert "When that is mended: tunesmith preview model rows.jsonl\n" in told("rows.jsonl")[1]


def test_a_run_can_be_looked_at_by_its_own_settings_and_is_not_to_be_trained_into_its_own_folder(
    told: Callable[..., tuple[int, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("runs/x-1").mkdir(parents=True)
    Recipe.of({"model": "model", "data": "rows.jsonl", "output_dir": "runs/x-1"}).write(Path("runs/x-1/run.yaml"))
    assert main(["preview", "runs/x-1/run.yaml"]) == 0
    assert "Next: tunesmith train runs/x-1/run.yaml --output-dir runs/x-2\n" in capsys.readouterr().out
    code, out = told("rows.jsonl", "--out-dir=model")
    assert code == 0, "nothing is written there"
    assert "Next: tunesmith train model rows.jsonl --output-dir model-1\n" in out
    assert "Next: tunesmith train model rows.jsonl --output-dir free\n" in told("rows.jsonl", "--output-dir", "free")[1]


def test_data_that_are_not_there_are_a_mistake_in_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preview", "model", "rowz.jsonl"]) == 2
    assert "There is no file rowz.jsonl (did you mean rows.jsonl?)" in capsys.readouterr().err


def test_json_is_alone_on_standard_output_and_says_the_same(told: Callable[..., tuple[int, str]]) -> None:
    write("rows.jsonl", *ROWS, {"prompt": EVIL, "completion": "It was so."})
    code, out = told("rows.jsonl", "--json", "--micro-batch-size", "4", "--val-size", "3")
    seen = json.loads(out)
    assert code == 0
    assert out.isascii()
    assert (seen["rows"], seen["held_out"]) == (13, 3)
    assert seen["verdict"]["word"] in ("good", "look at this")
    assert {"lengths", "cut", "packing", "prefix", "findings", "shown", "system_prompts", "next"} <= set(seen)
    assert all({"text", "ids", "trained", "special", "cut"} <= set(p) for row in seen["shown"] for p in row["pieces"])
    write("rows.jsonl", "{")
    code, out = told("rows.jsonl", "--json")
    assert code == 1
    assert json.loads(out)["verdict"]["word"] == "will not train"


def test_control_characters_never_reach_the_terminal(told: Callable[..., tuple[int, str]]) -> None:
    messages = [{"role": "system", "content": EVIL}, {"role": "user", "content": EVIL}, {"role": "assistant", "content": EVIL}]
    write("rows.jsonl", *[{"messages": messages}] * 3)
    _, out = told("rows.jsonl")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", out)
    assert "\\x1b[31mred" in out
    assert "\\u202eevil" in out
    assert "[bold]b[/bold]" in out


def test_colours_are_for_terminals_and_tell_what_the_marks_tell() -> None:
    from tunesmith.cli.preview_terminal import legend, tokens
    from tunesmith.data.pieces import Piece
    from tunesmith.data.preview import ShownRow

    row = ShownRow("r line 1", 3, 1, (Piece("<s>", (1,), False, True, False), Piece("a\x1b[1m", (2,), True, False, False)))
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=80)
    console.print(legend(False), tokens(row, False))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[" in shown
    assert "\\x1b[1m" in shown
    assert tokens(row, True).plain == "<s>⟦a\\x1b[1m⟧"


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_one_file_without_script_and_shows_what_is_odd_as_text(told: Callable[..., tuple[int, str]]) -> None:
    write("rows.jsonl", *ROWS, {"prompt": EVIL, "completion": "It was so."})
    code, out = told("rows.jsonl", "--html", "page.html", "--row", "16")
    assert code == 0
    assert "page.html" in out
    source = Path("page.html").read_text(encoding="utf-8")
    page = Page(source)
    assert "script" not in page.tags
    assert not page.tags & {"img", "link", "iframe", "object", "a"}
    names = {name for name, _ in page.attributes}
    assert not {name for name in names if name.startswith("on")} | (names & {"src", "href"})
    assert "http" not in source.replace("http-equiv", "")
    assert "<script>alert(1)</script>" in page.text
    assert "\\x1b[31mred" in page.text
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", source)
    assert "prefers-color-scheme:dark" in source
    assert "width=device-width" in source
    for word in ("15 to train on", "Lengths", "Looked for", "stop token", "tunesmith train model rows.jsonl"):
        assert word.replace("15", "16") in page.text


def test_rows_of_the_bundled_data_are_named_without_the_folder_they_are_installed_in(told: Callable[..., tuple[int, str]]) -> None:
    _, out = told("yoda", "--html", "page.html", "--max-rows", "20")
    assert "\nyoda/train.jsonl line 1 · " in out
    assert "<h3>yoda/train.jsonl line 1 " in Path("page.html").read_text(encoding="utf-8")


def test_a_page_is_not_overwritten_unless_asked(told: Callable[..., tuple[int, str]], capsys: pytest.CaptureFixture[str]) -> None:
    Path("page.html").write_text("mine")
    code, out = told("rows.jsonl", "--html", "page.html")
    assert (code, out) == (2, "")
    assert Path("page.html").read_text() == "mine"
    assert main(["preview", "model", "rows.jsonl", "--html", "page.html"]) == 2
    said = capsys.readouterr().err
    assert "page.html is there already" in said
    assert "--force" in said
    assert told("rows.jsonl", "--html", "page.html", "--force")[0] == 0
    assert Path("page.html").read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
def test_a_page_may_go_to_a_device(told: Callable[..., tuple[int, str]]) -> None:
    assert told("rows.jsonl", "--html", "/dev/null")[0] == 2
    for page in ("/dev/null", "/dev/stdout"):
        assert told("rows.jsonl", "--html", page, "--force")[0] == 0
    assert told("rows.jsonl", "--html", "model", "--force")[0] == 2


@pytest.mark.parametrize(("page", "says"), [("model", "is a folder"), ("none/page.html", "no folder none")])
def test_a_page_that_cannot_be_written_is_refused_before_any_work(page: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preview", "model", "rows.jsonl", "--html", page]) == 2
    assert says in capsys.readouterr().err


def test_a_row_that_is_not_there_and_a_wrong_count(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preview", "model", "rows.jsonl", "--row", "99"]) == 2
    assert "no row 99" in capsys.readouterr().err
    assert main(["preview", "model", "rows.jsonl", "--rows", "-1"]) == 2


def test_settings_may_stand_anywhere_among_its_own_options(told: Callable[..., tuple[int, str]]) -> None:
    code, out = told("--rows", "1", "rows.jsonl", "--max-steps", "-1", "--json", "packing=none", "--no-shared-prefix")
    seen = json.loads(out)
    assert code == 0
    assert len(seen["shown"]) == 1
    assert seen["packing"]["strategy"] == "none"
    assert seen["prefix"]["on"] is False


def test_the_next_command_keeps_every_setting_and_is_safe_to_paste(told: Callable[..., tuple[int, str]]) -> None:
    Path("rows.jsonl").rename("my rows;x.jsonl")
    _, out = told("my rows;x.jsonl", "--val-size", "3", "--rows", "1")
    assert "Next: tunesmith train model 'my rows;x.jsonl' --val-size 3\n" in out
    shortest = json.loads(told("my rows;x.jsonl", "--json")[1])["cut"]["shortest"]
    less = str(shortest - 3)
    _, out = told("my rows;x.jsonl", "--no-shuffle", "--max-length", less, "--use-dora", f"cutoff_len={less}")
    assert f"Next: tunesmith train model 'my rows;x.jsonl' --no-shuffle --max-length {shortest} --use-dora\n" in out


@given(st.text())
def test_visible_text_is_printable_but_for_line_ends_and_joiners(text: str) -> None:
    assert all(c.isprintable() or c in "\n\u200c\u200d" for c in visible(text))
    assert "\n" not in on_one_line(text)
    if text.isprintable():
        assert visible(text) == text


@pytest.mark.parametrize(
    ("part", "whole", "says"), [(0, 9, "0.0%"), (9, 9, "100%"), (1, 10_000, "<0.1%"), (99_999, 100_000, "99.9%")]
)
def test_a_share_is_all_or_nothing_only_if_it_is(part: int, whole: int, says: str) -> None:
    assert share(part, whole) == says
