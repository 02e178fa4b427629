"""A whole run on a tiny model: what lies in its folder, what its report says, how it stops, what it refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser

import pytest
import yaml

import tunesmith as ts
from tunesmith.errors import AdapterError, RunError, TrainingError, TunesmithError
from tunesmith.events import Prepared
from tunesmith.generate.sampling import Sampling

ROWS = [
    {"prompt": f"the {thing} is {how}", "completion": f"{how}, the {thing} is"}
    for thing in ("wind", "camp", "bridge", "table", "night")
    for how in ("cold", "dark", "kind", "<b>bold</b>")
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture(scope="module")
def run(tiny_model_folder, data, tmp_path_factory):
    return ts.train(
        str(tiny_model_folder), str(data), num_train_epochs=3, learning_rate=1e-2, per_device_train_batch_size=4, val_size=4,
        output_dir=str(tmp_path_factory.mktemp("runs") / "run"),
    )  # fmt: skip


def test_the_folder_holds_what_others_can_read_and_no_pickle(run):
    names = {p.name for p in run.folder.iterdir()}
    assert {
        "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
        "run.yaml", "metrics.jsonl", "report.html", "README.md", "manifest.json",
    } <= names  # fmt: skip
    assert not [n for n in names if n.endswith((".bin", ".pt", ".pth", ".pkl")) or n.startswith(".tmp")]


def test_training_lowers_the_loss_and_metrics_tell_every_update(run):
    metrics = run.metrics
    assert [m["step"] for m in metrics] == list(range(1, metrics[-1]["total"] + 1))
    assert metrics[-1]["loss"] < 0.7 * metrics[0]["loss"]
    assert metrics[-1]["eval_loss"] is not None
    assert metrics[-1]["epoch"] == pytest.approx(3)


def test_the_saved_recipe_is_complete_and_accepted_back(run, tmp_path):
    settings = yaml.safe_load((run.folder / "run.yaml").read_text())
    assert settings["learning_rate"] == 1e-2
    assert isinstance(settings["max_length"], int)
    again = ts.train(**{**settings, "output_dir": str(tmp_path / "again"), "max_steps": 3})
    first = [m["loss"] for m in run.metrics[:1]]
    assert [m["loss"] for m in again.metrics[:1]] == first


@pytest.mark.parametrize("named", ["rows.jsonl", "*.jsonl", "rows.jsonl,more.jsonl"])
def test_rows_named_from_where_one_stands_are_found_from_anywhere(tiny_model_folder, data, tmp_path, monkeypatch, named):
    here = tmp_path / "here"
    here.mkdir()
    for name in ("rows.jsonl", "more.jsonl")[: 1 + ("more" in named)]:
        (here / name).write_text(data.read_text())
    monkeypatch.chdir(here)
    settings = {"output_dir": str(tmp_path / "run"), "max_steps": 1, "val_size": 2, "max_length": 64}
    run = ts.train(str(tiny_model_folder), named, **settings)
    monkeypatch.chdir(tmp_path)
    assert len(run.compare(suites=False).rows) == 2


def test_the_report_is_self_contained_and_escapes_what_it_shows(run):
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    tags: list[str] = []
    links: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            tags.append(tag)
            links.extend(value for name, value in attrs if name in ("src", "href"))

    Reader().feed(page)
    assert "script" not in tags
    assert "b" not in [t for t in tags if t == "b"] or "<b>bold</b>" not in page
    assert links
    assert all(link.startswith("data:image/png;base64,") for link in links)
    for fact in ("held-out loss", "peak memory", "learning rate", "packing"):
        assert fact in page


def test_answers_before_training_are_the_base_models(run):
    row = run.comparison.rows[0]
    assert run.generate(row.question, base=True, max_new_tokens=row.before.tokens) == row.before.text
    assert {row.question for row in run.comparison.rows} <= {row["prompt"] for row in ROWS}


def test_an_answer_is_that_of_chat_as_long_as_there(run):
    asked = [{"role": "user", "content": "the wind is cold"}]
    answer = run.generate("the wind is cold", temperature=5.0, seed=1)
    assert (
        answer
        == run.session.answer([asked], Sampling(512, 5.0, seed=1))[0]
        != run.session.answer([asked], Sampling(64, 5.0, seed=1))[0]
    )


def test_messages_may_come_in_any_sequence(run):
    messages = ({"role": "system", "content": "Be short."}, {"role": "user", "content": "the wind is cold"})
    assert run.generate(messages, max_new_tokens=4) == run.generate([*messages], max_new_tokens=4)


@pytest.mark.parametrize(("prompt", "settings", "told"), [
    ([{"role": "bot", "content": "a"}], {}, "message 1: role 'bot'"), (None, {}, "not a list of messages"),
    ("a", {"max_tokens": 5}, "did you mean max_new_tokens"), ("a " * 300, {}, "this model sees 256"),
])  # fmt: skip
def test_what_cannot_be_asked_is_told(run, prompt, settings, told):
    with pytest.raises(TunesmithError, match=told):
        run.generate(prompt, **settings)


def test_held_out_rows_are_never_trained_on(run, tiny_model_folder, data):
    from tunesmith.job import prepare_run
    from tunesmith.recipe import Recipe

    job, _ = prepare_run(Recipe.of({"model_name_or_path": str(tiny_model_folder), "dataset_name": str(data), "val_size": 4}))
    trained = {tuple(e.input_ids) for row in job.data.rows for e in row}
    assert len(job.data.held_out) == 4
    assert not trained & {tuple(e.input_ids) for e in job.data.held_out}


def test_a_run_is_named_after_its_model_and_data_dots_and_all(tiny_model_folder, data, tmp_path, monkeypatch):
    from tunesmith.job import prepare_run
    from tunesmith.recipe import Recipe

    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model_folder, "llama-3.1-8b")
    shutil.copy(data, "rows.v2.jsonl")
    job, _ = prepare_run(Recipe.of({"model_name_or_path": "llama-3.1-8b", "dataset_name": "rows.v2.jsonl"}))
    assert job.recipe.output_dir == "runs/llama-3.1-8b-rows.v2-1"


def test_a_taken_folder_is_refused_and_left_alone(run, tiny_model_folder, data):
    before = {p.name: p.stat().st_mtime_ns for p in run.folder.iterdir()}
    with pytest.raises(RunError, match="not empty"):
        ts.train(str(tiny_model_folder), str(data), output_dir=str(run.folder))
    assert {p.name: p.stat().st_mtime_ns for p in run.folder.iterdir()} == before


def test_a_loss_that_is_not_finite_stops_before_the_update(tiny_model_folder, data, tmp_path):
    settings = {"learning_rate": 1e30, "max_grad_norm": 0, "max_steps": 20}
    with pytest.raises(TrainingError, match="update"):
        ts.train(str(tiny_model_folder), str(data), output_dir=str(tmp_path / "r"), **settings)
    assert not (tmp_path / "r" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("packing", ["bfd", "wrapped", "none"])
def test_every_packing_trains(tiny_model_folder, data, tmp_path, packing):
    done = ts.train(
        str(tiny_model_folder), str(data), packing=packing, max_length=64, learning_rate=1e-2, num_train_epochs=2,
        output_dir=str(tmp_path / "r"),
    )  # fmt: skip
    assert done.metrics[-1]["loss"] < done.metrics[0]["loss"]


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"load_in_8bit": True}, {"lora_bias": "all"}, {"use_rslora": True}])
def test_adapters_off_the_fast_path_train_too(tiny_model_folder, data, tmp_path, settings):
    done = ts.train(str(tiny_model_folder), str(data), learning_rate=1e-2, max_steps=4, output_dir=str(tmp_path / "r"), **settings)
    assert done.metrics[-1]["loss"] < done.metrics[0]["loss"]
    assert ts.load(done.folder).generate("the wind is cold") == done.generate("the wind is cold")


def test_ctrl_c_saves_what_was_reached(tiny_model_folder, data, tmp_path):
    folder = tmp_path / "r"
    command = [
        sys.executable, "-m", "tunesmith.cli.main", "train", str(tiny_model_folder), str(data), "--num-train-epochs=100000",
        f"--output-dir={folder}",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    deadline = time.monotonic() + 120
    for line in process.stdout:
        if line.startswith("update") or time.monotonic() > deadline:
            break
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "saving what was reached" in output
    assert ts.load(folder).generate("the wind is cold") is not None
    assert 0 < len(ts.load(folder).metrics) < 100_000


def test_a_run_with_hardly_any_memory_takes_another_way_and_makes_the_same_updates(tiny_model_folder, data, tmp_path):
    settings = {"learning_rate": 1e-2, "max_steps": 4, "lora_dropout": 0.0, "per_device_train_batch_size": 4}
    ways, losses = [], []
    for memory in (None, "1MB"):
        events: list[object] = []
        run = ts.train(
            str(tiny_model_folder),
            str(data),
            memory=memory,
            output_dir=str(tmp_path / str(memory)),
            watch=events.append,
            **settings,
        )
        ways.append(next(event.plan.chosen.way for event in events if isinstance(event, Prepared)))
        losses.append([m["loss"] for m in run.metrics])
    roomy, tight = ways
    assert (roomy.keep, roomy.recompute, roomy.split) == (True, False, 1)
    assert (tight.keep, tight.split) == (False, 4)
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


def test_an_adapter_that_names_another_base_is_not_opened_in_a_runs_folder(run, tmp_path):
    folder = shutil.copytree(run.folder, tmp_path / "run")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "org/another"}))
    with pytest.raises(AdapterError, match="names 'org/another' as its base, and this run was trained on"):
        ts.load(folder).generate("hello")
