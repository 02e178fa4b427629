"""The verbs: train, load. The only file that knows every room."""

import dataclasses
import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.base.adapter import adapter_parameters, open_adapter
from tunesmith.base.catalog import ModelSource, resolve
from tunesmith.base.lean import speed_up
from tunesmith.base.load import choose_compute, load_model
from tunesmith.base.tokenizer import load_tokenizer
from tunesmith.data.dataset import Dataset
from tunesmith.data.render import Renderer
from tunesmith.errors import AdapterError, RunError
from tunesmith.events import Loaded, Note, Prepared, Progress, Watch
from tunesmith.export.adapter import save_adapter
from tunesmith.export.card import write_card
from tunesmith.export.manifest import write_manifest
from tunesmith.facts import run_facts
from tunesmith.generate.engine import Sampling
from tunesmith.generate.score import exact_matches
from tunesmith.generate.session import Session
from tunesmith.job import check_output, eval_packs, load_job, prepare_run
from tunesmith.plan.memory import available_bytes, footprint, shape_of
from tunesmith.recipe import Recipe
from tunesmith.training import guard
from tunesmith.training.interrupt import interruptible
from tunesmith.training.loop import StepReport
from tunesmith.training.loop import train as train_loop
from tunesmith.training.report import Change, write_report
from tunesmith.training.step import PackLoss


class Run:
    """A finished run: a folder with an adapter, and the model it belongs to, loaded when it is first needed."""

    def __init__(self, folder: Path, session: Session | None = None, changes: Sequence[Change] = ()) -> None:
        self.folder, self.changes = folder, list(changes)
        self._session = session

    @property
    def session(self) -> Session:
        """The model, its adapter and its template."""
        if self._session is None:
            self._session = _open(self.folder)
        return self._session

    def generate(self, prompt: str | list[dict[str, str]], *, base: bool = False, raw: bool = False, **sampling: Any) -> str:
        """The answer to a text or a list of messages.

        Args:
            base: answer as the untuned model. raw: keep special tokens. sampling: see `Sampling`; greedy by default.
        """
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return self.session.answer([messages], Sampling(**sampling), base=base, raw=raw)[0]

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One record an update, as in metrics.jsonl."""
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"


def train(model: str | None = None, data: str | None = None, *, watch: Watch = lambda event: None, **settings: Any) -> Run:
    """Tune ``model`` on ``data``; every other setting by its name in `Recipe`. Returns the finished run.

    Raises:
        TunesmithError: anything that keeps the run from being right; nothing is overwritten.
    """
    named = {"model_name_or_path": model, "dataset_name": data}
    recipe = Recipe.of({**{k: v for k, v in named.items() if v is not None}, **settings}, lambda line: watch(Note(line)))
    return run_recipe(recipe, watch)


def load(folder: str | Path) -> Run:
    """Open a run, or any folder with a LoRA adapter that peft saved.

    Raises:
        RunError: there is no adapter in it.
    """
    path = Path(folder)
    if not (path / "adapter_config.json").is_file():
        raise RunError(f"{path} holds no adapter.", "Give the folder of a finished run, such as runs/smollm2-135m-yoda-1.")
    return Run(path)


def run_recipe(recipe: Recipe, watch: Watch = lambda event: None, samples: int = 8) -> Run:
    """Train as the recipe says, save, compare ``samples`` held-out rows before and after, and report."""
    job, renderer = prepare_run(recipe, watch)
    watch(Note(f"Loading {job.source.base}"))
    with guard.enough_memory():
        model, loss_of, loaded = load_job(job)
        watch(loaded)
        folder = _claim(job.asked)
        steps = _train(model, loss_of, job, folder, watch)
        save_adapter(model, renderer.tokenizer, folder)
        session = Session(model.eval(), renderer)
        changes = _compare(session, job.data, samples, watch) if samples else []
    _write_outputs(folder, job, loaded, steps, changes)
    return Run(folder, session, changes)


def _train(model: Any, loss_of: PackLoss, job: Prepared, folder: Path, watch: Watch) -> list[StepReport]:
    before = guard.snapshot(adapter_parameters(model))
    steps: list[StepReport] = []
    assert job.recipe.learning_rate is not None
    updates = train_loop(model, loss_of, job.loader, job.recipe, job.recipe.learning_rate, eval_packs(job))
    with interruptible() as interrupt, (folder / "metrics.jsonl").open("w", encoding="utf-8") as metrics:
        for report in updates:
            steps.append(report)
            metrics.write(json.dumps(dataclasses.asdict(report)) + "\n")
            metrics.flush()
            watch(report)
            if interrupt.asked:
                watch(Note(f"Stopped after update {report.step} of {report.total}; saving what was reached"))
                break
    guard.check_changed(before, adapter_parameters(model))
    return steps


def _compare(session: Session, data: Dataset, samples: int, watch: Watch) -> list[Change]:
    """Answers before and after training on held-out rows whose last message is the assistant's."""
    rows = [c for c in data.questions if c.messages[-1].role == "assistant" and len(c.messages) > 1][:samples]
    if not rows:
        return []
    asked = [c.as_dicts()[:-1] for c in rows]
    expected = [c.messages[-1].content for c in rows]
    longest = max(len(session.renderer.tokenizer(text)["input_ids"]) for text in expected)
    sampling = Sampling(max_new_tokens=min(512, 2 * longest))
    answers = []
    for number, base in enumerate((True, False)):
        watch(Progress("answers", number * len(rows), 2 * len(rows)))
        answers.append(session.answer(asked, sampling, base=base))
    watch(Progress("answers", 2 * len(rows), 2 * len(rows)))
    right = [exact_matches(given, expected, data.asides) for given in answers]
    questions = [messages[-1]["content"] for messages in asked]
    return [Change(*values) for values in zip(questions, *answers, expected, *right)]


def _write_outputs(folder: Path, job: Prepared, loaded: Loaded, steps: list[StepReport], changes: list[Change]) -> None:
    facts = run_facts(job, loaded, steps)
    title = f"{Path(job.recipe.model_name_or_path).name} on {Path(job.recipe.dataset_name).name}"
    write_report(folder / "report.html", title, facts, steps, changes)
    write_card(folder, job.source.base, {k: v for rows in facts.values() for k, v in rows.items()})
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")}
    write_manifest(
        folder,
        {"base": job.source.base, "revision": job.source.revision, "data_sha256": job.data.facts.sha256, "versions": versions},
    )


def _claim(recipe: Recipe) -> Path:
    check_output(recipe)
    assert recipe.output_dir is not None
    folder = Path(recipe.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        recipe.write(folder / "run.yaml")
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror or error}.", "Give another --output-dir.") from error
    return folder


def _open(folder: Path) -> Session:
    """Load the base a run was trained on, and its adapter."""
    recipe = _recipe_of(folder)
    source = resolve(recipe.model_name_or_path)
    compute = choose_compute(recipe)
    own = (folder / "tokenizer_config.json").is_file()  # the tokenizer it was trained with, template included
    at_hand = ModelSource(str(folder), None, str(folder)) if own else source
    tokenizer = load_tokenizer(at_hand, None if own else recipe.chat_template)
    # How it was trained was decided by the memory of training; to answer takes less.
    shape, room = shape_of(source), 0.8 * available_bytes(compute.device)
    stored = footprint(shape, 4 if recipe.load_in_4bit else 0, compute.dtype.itemsize)
    stream = recipe.load_in_4bit and compute.device.type == "cuda" and stored > room
    recipe = recipe.model_copy(update={"offload_base": "always" if stream else "never"})
    model = open_adapter(load_model(source, recipe, compute), folder)
    kept = shape.linear_weights * compute.dtype.itemsize
    speed_up(model, compute.dtype, not recipe.load_in_4bit or (not stream and kept + stored < room))
    return Session(model, Renderer(tokenizer))


def _recipe_of(folder: Path) -> Recipe:
    if (folder / "run.yaml").is_file():
        return Recipe.of(Recipe.read(folder / "run.yaml"))
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        base, revision = config["base_model_name_or_path"], config.get("revision")
    except (OSError, ValueError, KeyError) as error:
        raise AdapterError(f"{folder}/adapter_config.json does not name a base model.", "Add base_model_name_or_path.") from error
    if not isinstance(base, str) or not base:
        raise AdapterError(f"{folder}/adapter_config.json does not name a base model.", "Add base_model_name_or_path.")
    return Recipe.of({"model_name_or_path": f"{base}@{revision}" if revision and not Path(base).exists() else base})
