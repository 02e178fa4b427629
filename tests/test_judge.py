"""Proves that a run is judged on the very rows it held out, or says why not; and on others; from Python and on the terminal."""

import json
import shutil

import pytest
import yaml

import tunesmith as ts
from tunesmith.cli.main import main
from tunesmith.errors import DataError, RunError
from tunesmith.events import Note
from tunesmith.judge import rows_of
from tunesmith.recipe import Recipe

ROWS = [
    {"question": f"the {thing} is {how}", "reply": f"{how}, the {thing} is"}
    for thing in ("wind", "camp", "bridge", "table", "night")
    for how in ("cold", "dark", "kind", "strong")
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def run(tiny_model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    data = write(folder / "rows.jsonl", ROWS)
    return ts.train(
        str(tiny_model_folder), str(data), prompt="question", completion="reply", num_train_epochs=6, learning_rate=1e-2,
        per_device_train_batch_size=4, val_size=6, output_dir=str(folder / "run"),
    )  # fmt: skip


@pytest.fixture
def copy(run, tmp_path):
    """The run and its data somewhere else, to spoil them."""
    shutil.copytree(run.folder, tmp_path / "run")
    data = shutil.copy(run.folder.parent / "rows.jsonl", tmp_path / "rows.jsonl")
    settings = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    (tmp_path / "run" / "run.yaml").write_text(yaml.safe_dump({**settings, "dataset_name": str(data)}))
    return tmp_path / "run"


def test_training_ends_with_a_comparison_that_report_and_card_tell_too(run):
    found = run.comparison
    assert {row.question for row in found.rows} <= {row["question"] for row in ROWS}
    assert len(found.rows) == 6
    loss = found.measures[0]
    assert loss.name == "loss on answers"
    assert loss.after == pytest.approx(run.metrics[-1]["eval_loss"], rel=1e-4), "the fast loss of training, on the same rows"
    report = (run.folder / "report.html").read_text(encoding="utf-8")
    assert f"<b>{found.verdict.word}</b>" in report
    assert "suites not asked" in found.forgetting.reason
    assert all(row.expected in report for row in found.rows)


def test_a_loaded_run_is_judged_on_the_same_rows_with_the_same_figures(run):
    again = ts.load(run.folder).compare()
    assert [row.where for row in again.rows] == [row.where for row in run.comparison.rows]
    for now, then in zip(again.measures, run.comparison.measures, strict=True):
        assert (now.name, now.after) == (then.name, pytest.approx(then.after, rel=1e-3))
    assert [one.rows for one in again.abilities if one.name == "all suites"] == [92]


def test_changed_data_are_noticed_and_not_judged_on(copy):
    write(copy.parent / "rows.jsonl", [{**row, "reply": row["reply"] + "!"} for row in ROWS])
    with pytest.raises(RunError, match="changed since it was trained"):
        ts.compare(copy, suites=False)


def test_rows_that_are_gone_are_named_and_others_asked_for(copy):
    (copy.parent / "rows.jsonl").unlink()
    with pytest.raises(RunError, match=r"cannot be read again.*rows\.jsonl.*tunesmith compare"):
        ts.compare(copy, suites=False)


def test_what_the_model_can_see_is_what_training_says_it_is(copy):
    """Of model and tokenizer the smaller counts, and this tokenizer says nothing."""
    _edit_json(copy / "tokenizer_config.json", lambda config: config.pop("model_max_length"))
    settings = yaml.safe_load((copy / "run.yaml").read_text())
    (copy / "run.yaml").write_text(yaml.safe_dump({**settings, "max_length": 300}))
    with pytest.raises(RunError, match="max_length 300 is more than the 256 tokens this model can see"):
        ts.compare(copy, suites=False)


def test_a_run_that_held_nothing_out_asks_for_rows(copy):
    settings = yaml.safe_load((copy / "run.yaml").read_text())
    (copy / "run.yaml").write_text(yaml.safe_dump({**settings, "val_size": 0}))
    with pytest.raises(RunError, match=r"held no rows out.*tunesmith compare"):
        ts.compare(copy, suites=False)


def test_an_older_run_is_known_by_its_other_rows_and_one_without_a_manifest_is_taken_with_a_warning(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["held_out_sha256"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    notes: list[str] = []
    tell = lambda event: notes.append(event.text) if isinstance(event, Note) else None  # noqa: E731
    ts.compare(copy, rows=1, suites=False, watch=tell)
    assert not any("nothing shows" in note for note in notes)
    (copy / "manifest.json").write_text("[1")
    ts.compare(copy, rows=1, suites=False, watch=tell)
    assert any("nothing shows" in note for note in notes)


def test_rows_of_ones_own_are_read_as_the_runs_were_or_by_their_own_columns(run, tmp_path):
    same = write(tmp_path / "same.jsonl", [{"id": 1, "text": "aside", **row} for row in ROWS[:6]])
    other = write(tmp_path / "other.jsonl", [{"prompt": row["question"], "completion": row["reply"]} for row in ROWS[:6]])
    a, b = (ts.compare(run, path, suites=False) for path in (same, other))
    assert [row.question for row in a.rows] == [row["question"] for row in ROWS[:6]] == [row.question for row in b.rows]
    assert a.measures == b.measures
    assert ts.compare(run, other, rows=2, suites=False).verdict.word == "too few rows"


def test_no_rows_at_all_are_an_error_that_names_the_file(run, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match=r"empty\.jsonl"):
        ts.compare(run, tmp_path / "empty.jsonl")
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        ts.compare(run, tmp_path / "nowhere.jsonl")


def test_the_command_shows_figures_and_verdicts_and_writes_the_page_once(run, tmp_path, capsys):
    page = tmp_path / "page.html"
    rows = str(write(tmp_path / "rows.jsonl", [{**ROWS[0], "question": "\x1b[31mred\x07"}, *ROWS[1:6]]))
    assert main(["compare", str(run.folder), rows, "--html", str(page)]) == 0
    shown = capsys.readouterr().out
    for word in ("loss on answers", "chrF", "stops properly", "facts", "Tuned against base:", "Forgetting:"):
        assert word in shown
    assert "\x1b[31m" not in shown
    assert "\x07" not in shown
    assert "Content-Security-Policy" in page.read_text(encoding="utf-8")
    assert main(["compare", str(run.folder), rows, "--html", str(page)]) == 2
    assert "there already" in capsys.readouterr().err


def test_json_is_all_that_standard_output_holds(run, capsys):
    assert main(["compare", str(run.folder), "--rows", "5", "--json", "--no-suites"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"rows", "measures", "abilities", "verdict", "forgetting", "notes"} <= set(found)
    assert len(found["rows"]) == 5


@pytest.mark.parametrize("arguments", [["--rows", "0"], ["--rows", "many"], ["--html"], []])
def test_wrong_arguments_are_refused_by_the_parser(arguments, run):
    assert main(["compare", *([str(run.folder)] if arguments else []), *arguments]) == 2


def test_columns_of_ones_own_that_say_nothing_are_not_answered_with_flags_of_training(run, tmp_path):
    data = write(tmp_path / "odd.jsonl", [{"left": "a", "right": "b"}])
    with pytest.raises(DataError, match=r"\(left, right\).*Call its columns") as caught:
        ts.compare(run, data, suites=False)
    assert "--prompt" not in str(caught.value)


def test_rows_of_ones_own_are_read_in_the_format_the_run_was_trained_in_or_by_their_own_columns(tmp_path):
    labelled = write(tmp_path / "labelled.jsonl", [{"prompt": "a", "completion": "b", "label": False}])
    talks = write(
        tmp_path / "talks.jsonl", [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    )
    trained = Recipe.of({"dataset_format": "prompt_completion"})
    assert [len(rows_of(str(path), trained, lambda event: None).rows) for path in (labelled, talks)] == [1, 1]
    with pytest.raises(DataError, match="Keep the rows whose label is true") as caught:
        rows_of(str(labelled), Recipe(), lambda event: None)
    assert "--" not in str(caught.value)


def test_what_is_no_run_is_said(tmp_path, capsys):
    assert main(["compare", str(tmp_path)]) == 2
    assert "holds no adapter" in capsys.readouterr().err
