"""The verbs: train, resume, load. The only file that knows every room."""

import dataclasses
import importlib.metadata
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from tunesmith.base.adapter import adapter_parameters, open_adapter
from tunesmith.base.catalog import ModelSource, resolve
from tunesmith.base.lean import speed_up
from tunesmith.base.load import choose_compute, load_model
from tunesmith.base.tokenizer import load_tokenizer
from tunesmith.data.dataset import Dataset
from tunesmith.data.render import Renderer
from tunesmith.errors import AdapterError, RecipeError, RunError
from tunesmith.events import Loaded, Note, Prepared, Progress, Watch
from tunesmith.export.adapter import save_adapter
from tunesmith.export.card import write_card
from tunesmith.export.manifest import write_manifest
from tunesmith.facts import run_facts
from tunesmith.generate.engine import Sampling
from tunesmith.generate.score import exact_matches
from tunesmith.generate.session import Session
from tunesmith.job import eval_packs, load_job, prepare_run
from tunesmith.origin import origin_of
from tunesmith.plan.memory import available_bytes, footprint, shape_of
from tunesmith.plan.way import Way
from tunesmith.recipe import Recipe
from tunesmith.run_folder import check_same, check_space, claim, is_finished, tidy_and_record
from tunesmith.training import guard
from tunesmith.training.checkpoint import Checkpoint, newest_checkpoint
from tunesmith.training.disk import plain_disk_errors, replace_durably
from tunesmith.training.interrupt import interruptible
from tunesmith.training.keeper import RunKeeper
from tunesmith.training.lock import RunLock
from tunesmith.training.loop import StepReport
from tunesmith.training.loop import train as train_loop
from tunesmith.training.report import Change, write_report
from tunesmith.training.state import Best, host_copy, put_adapter
from tunesmith.training.step import PackLoss

SAMPLES = 8
"""Held-out rows answered before and after, unless more are asked for."""


class Run:
    """A finished run: a folder with an adapter, and the model it belongs to, loaded when it is first needed."""

    def __init__(self, folder: Path, session: Session | None = None, changes: Sequence[Change] = ()) -> None:
        self.folder, self.changes = folder, list(changes)
        self._session = session

    @property
    def session(self) -> Session:
        """The model, its adapter and its template."""
        if self._session is None:
            self._session = open_session(self.folder)
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


def resume(run: str | Path | Run, *, allow_changed: bool = False, watch: Watch = lambda event: None) -> Run:
    """Go on with a run that was stopped, from its newest whole checkpoint, to the end it would have had. Returns the run.

    Args:
        allow_changed: go on even if its data, base, template or settings are others now; resumes.jsonl says which.

    Raises:
        RunError: it is no run, another process works on it, no checkpoint of it is whole, or something changed.
    """
    folder = run.folder if isinstance(run, Run) else Path(run)
    if not (folder / "run.yaml").is_file():
        raise RunError(f"{folder} holds no run: it has no run.yaml.", "Give the folder of a run, such as runs/smollm2-135m-yoda-1.")
    if is_finished(folder):
        watch(Note(f"{folder} is finished; there is nothing left to do"))
        return Run(folder)
    with plain_disk_errors(folder), RunLock(folder):
        found, damaged = newest_checkpoint(folder / "checkpoints")
        if found is None and (folder / "adapter_model.safetensors").exists():
            raise RunError(f"{folder} holds an adapter, but no checkpoint to go on from.", "Train anew with another --output-dir.")
        for path, what in damaged:
            watch(Note(f"{path.name} is damaged: {what}; going on from {found.folder.name if found else 'the start'}"))
        recipe = Recipe.of({**Recipe.read(folder / "run.yaml"), "output_dir": str(folder)})
        way = Way(**found.origin["way"]) if found else None
        job, renderer = prepare_run(recipe, watch, begun=True, way=way)
        samples = found.origin["samples"] if found else SAMPLES
        origin = origin_of(job, renderer, samples)
        if found:
            check_same(folder, found, origin, allow_changed, watch)
        where = f"update {found.state.position.step} ({found.folder.name})" if found else "the start: it has no checkpoint yet"
        watch(Note(f"Going on with {folder} from {where}"))
        tidy_and_record(folder, found, origin, [path for path, _ in damaged])
        return _complete(job, renderer, folder, nullcontext(), origin, watch, found)


def load(folder: str | Path) -> Run:
    """Open a run, or any folder with a LoRA adapter that peft saved.

    Raises:
        RunError: there is no adapter in it.
    """
    path = Path(folder)
    if not (path / "adapter_config.json").is_file():
        raise RunError(f"{path} holds no adapter.", "Give the folder of a finished run, such as runs/smollm2-135m-yoda-1.")
    return Run(path)


def run_recipe(recipe: Recipe, watch: Watch = lambda event: None, samples: int = SAMPLES) -> Run:
    """Train as the recipe says, save, compare ``samples`` held-out rows before and after, and report."""
    job, renderer = prepare_run(recipe, watch)
    folder = Path(str(job.asked.output_dir))
    return _complete(job, renderer, folder, claim(job.asked, folder), origin_of(job, renderer, samples), watch)


def _complete(
    job: Prepared, renderer: Renderer, folder: Path, claimed: AbstractContextManager[None], origin: dict[str, Any], watch: Watch,
    found: Checkpoint | None = None,
) -> Run:  # fmt: skip
    """All that comes after the plan. claimed: within it the folder is this process's. found: where to go on from."""
    if job.recipe.load_best_model_at_end and not job.data.held_out:
        raise RecipeError("load_best_model_at_end needs held-out rows.", "Add --val-size 0.1 or --eval-dataset FILE.")
    watch(Note(f"Loading {job.source.base}"))
    with guard.enough_memory():
        model, loss_of, loaded = load_job(job)
        watch(loaded)
        check_space(job.recipe, folder, sum(p.nbytes for p in adapter_parameters(model).values()))
        with plain_disk_errors(folder), claimed:
            steps, best = _train(model, loss_of, job, folder, origin, watch, found)
            save_adapter(model, renderer.tokenizer, folder)
            session = Session(model.eval(), renderer)
            changes = _compare(session, job.data, origin["samples"], watch) if origin["samples"] else []
            _write_outputs(folder, job, loaded, steps, changes, best)
    return Run(folder, session, changes)


def _train(
    model: Any, loss_of: PackLoss, job: Prepared, folder: Path, origin: dict[str, Any], watch: Watch, found: Checkpoint | None
) -> tuple[list[StepReport], Best | None]:
    """Every update's report, those before ``found`` too, and the adapter that was put in at the end as the best."""
    parameters, recipe = adapter_parameters(model), job.recipe
    before = host_copy(parameters)
    head = found.metrics if found else b""
    steps = [StepReport(**json.loads(line)) for line in head.splitlines()]
    replace_durably(folder / "metrics.jsonl", head)
    assert recipe.learning_rate is not None
    with interruptible() as interrupt, (folder / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
        begun_at = found.state if found else None
        keeper = RunKeeper(folder, recipe, origin, lambda: interrupt.asked, begun_at.best if begun_at else None)
        for report in train_loop(model, loss_of, job.loader, recipe, recipe.learning_rate, eval_packs(job), keeper, begun_at):
            steps.append(report)
            metrics.write(json.dumps(dataclasses.asdict(report)) + "\n")
            metrics.flush()
            watch(report)
    done, total = steps[-1].step, job.updates
    if done < total:
        watch(Note(f"Stopped after update {done} of {total}; saving what was reached. `tunesmith resume {folder}` goes on"))
    if keeper.best:
        put_adapter(parameters, keeper.best.adapter)
        watch(Note(f"The adapter is that of update {keeper.best.step}, with the lowest held-out loss ({keeper.best.loss:.4f})"))
    guard.check_changed(before, parameters)
    return steps, keeper.best


def _compare(session: Session, data: Dataset, samples: int, watch: Watch) -> list[Change]:
    """Answers before and after training on held-out rows whose last message is the assistant's."""
    rows = [c for c in data.questions if c.messages[-1].role == "assistant" and len(c.messages) > 1 and not c.tools][:samples]
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


def _write_outputs(
    folder: Path, job: Prepared, loaded: Loaded, steps: list[StepReport], changes: list[Change], best: Best | None
) -> None:
    facts = run_facts(job, loaded, steps)
    if best:
        facts["Training"]["kept"] = f"update {best.step}, the lowest held-out loss ({best.loss:.4f})"
    title = f"{Path(job.recipe.model_name_or_path).name} on {Path(job.recipe.dataset_name).name}"
    write_report(folder / "report.html", title, facts, steps, changes)
    write_card(folder, job.source.base, {k: v for rows in facts.values() for k, v in rows.items()})
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")}
    origin = {"base": job.source.base, "revision": job.source.revision, "data_sha256": job.data.facts.sha256, "versions": versions}
    write_manifest(folder, {**origin, "updates": {"done": steps[-1].step, "of": job.updates}})


def open_session(folder: Path, lean: bool = True) -> Session:
    """Load the base a run was trained on, and its adapter; on the fast path, or with peft's own layers."""
    recipe = recipe_of(folder)
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
    if lean:
        speed_up(model, compute.dtype, not recipe.load_in_4bit or (not stream and kept + stored < room))
    return Session(model, Renderer(tokenizer))


def recipe_of(folder: Path) -> Recipe:
    """The recipe of a run, or of any adapter's folder what can be told of it."""
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
