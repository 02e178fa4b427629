"""The verbs: train, resume, load. The only file that knows every room."""

import dataclasses
import importlib.metadata
import json
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from tunesmith.base.adapter import adapter_parameters
from tunesmith.base.disk import plain_disk_errors, replace_durably
from tunesmith.data.dataset import fingerprint
from tunesmith.data.messages import messages_of
from tunesmith.data.render import Renderer
from tunesmith.errors import RecipeError, RunError
from tunesmith.events import Loaded, Note, Prepared, Watch
from tunesmith.export.adapter import save_adapter
from tunesmith.export.card import write_card
from tunesmith.export.hub import Pushed
from tunesmith.export.manifest import write_manifest
from tunesmith.export.publish import publish
from tunesmith.facts import run_facts
from tunesmith.generate.compare import Comparison
from tunesmith.generate.engine import Sampling
from tunesmith.generate.session import Session
from tunesmith.job import eval_packs, load_job, prepare_run
from tunesmith.judge import Judged, held_out_rows, judge, rows_of
from tunesmith.open_run import open_renderer, open_session, recipe_of
from tunesmith.origin import origin_of
from tunesmith.places import check_adapter, check_run
from tunesmith.plan.way import Way
from tunesmith.recipe import Recipe
from tunesmith.report import write_report
from tunesmith.run_folder import check_same, check_space, claim, is_finished, last_state_named, step_down, tidy_and_record
from tunesmith.training import guard
from tunesmith.training.checkpoint import Checkpoint, newest_checkpoint
from tunesmith.training.interrupt import interruptible
from tunesmith.training.keeper import RunKeeper
from tunesmith.training.lock import RunLock
from tunesmith.training.loop import StepReport
from tunesmith.training.loop import train as train_loop
from tunesmith.training.state import Best, host_copy, put_adapter
from tunesmith.training.step import PackLoss

SAMPLES = 40
"""Held-out rows answered before and after at the end of a run, unless more are asked for, as far as `ANSWERING` goes."""
SCORED = 400
"""Held-out rows whose loss is compared then."""
ANSWERING = 60.0
"""Seconds after which a run begins no more of those answers, unless more than `SAMPLES` are asked for."""


class Run:
    """A run: a folder with an adapter, and the model it belongs to, loaded when it is first needed. stopped: the signal that
    ended its training before its time, 0 if none did."""

    def __init__(
        self, folder: Path, session: Session | None = None, comparison: Comparison | None = None, stopped: int = 0
    ) -> None:  # fmt: skip
        self.folder, self.comparison, self.stopped = folder, comparison, stopped
        self._session = session

    @property
    def session(self) -> Session:
        """The model, its adapter and its template."""
        if self._session is None:
            self._session = open_session(self.folder)
        return self._session

    def generate(self, prompt: str | Sequence[dict[str, str]], *, base: bool = False, raw: bool = False, **sampling: Any) -> str:
        """The answer to a text or to messages: role, content, and what else chat templates read of one, such as a name.

        Args:
            base: answer as the untuned model. raw: keep special tokens. sampling: see `Sampling`; as `chat`, greedy and at most
                512 tokens by default.

        Raises:
            RecipeError: there is no such setting, or a value is out of its range. DataError: it is no text and no messages, or
                leaves no room for an answer.
        """
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        listed = list(messages) if isinstance(messages, Sequence) else messages
        checked = [message.as_dict() for message in messages_of(listed, "The prompt", "messages")]
        return self.session.answer([checked], Sampling.of({"max_new_tokens": 512, **sampling}), base=base, raw=raw)[0]

    def compare(
        self, data: str | Path | None = None, *, rows: int | None = None, suites: bool = True, watch: Watch = lambda event: None
    ) -> Comparison:  # fmt: skip
        """Base against tuned, on the rows the run held out or on others, and what tuning cost it of what it could do before.

        Args:
            data: a file, a folder or a hub id with rows to compare on. rows: look at so many at most, spread over all.
            suites: ask the suites too.

        Raises:
            RunError: the run held no rows out, or its data are gone or changed. DataError: ``data`` cannot be read.
        """
        recipe = recipe_of(self.folder)
        renderer = self._session.renderer if self._session else open_renderer(self.folder, recipe)
        judged = rows_of(str(data), recipe, watch) if data else held_out_rows(self.folder, recipe, renderer, watch)
        if self._session is None:
            watch(Note(f"Loading {recipe.model_name_or_path} and its adapter"))
        return judge(self.session, judged, watch, rows=rows, suites=suites)

    def push(self, repo: str, *, public: bool = False, base: str | None = None, watch: Watch = lambda event: None) -> Pushed:
        """Put the run on the hub as ``repo``, user/name; see `tunesmith.export.publish.publish`."""
        return publish(self.folder, repo, public=public, base=base, told=lambda line: watch(Note(line)))

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
    check_run(folder)
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
        job, renderer = prepare_run(recipe, watch, begins=False, way=way)
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
    check_adapter(path)
    return Run(path)


def compare(
    run: str | Path | Run, data: str | Path | None = None, *, watch: Watch = lambda event: None, **options: Any
) -> Comparison:  # fmt: skip
    """Base against tuned: see `Run.compare`."""
    return (run if isinstance(run, Run) else load(run)).compare(data, watch=watch, **options)


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
        with plain_disk_errors(folder), claimed, last_state_named(folder, watch):
            while (trained := _train(model, loss_of, job, folder, origin, watch, found)) is None:
                del model, loss_of  # nothing may hold them while the next is loaded
                job, found, origin = step_down(job, folder, origin, watch)
                model, loss_of, loaded = load_job(job)
            session = Session(model.eval(), renderer)
            save_adapter(model, renderer.tokenizer, session.stop_ids, folder)
            asked = 0 if trained.stopped else origin["samples"]  # who stops a run does not want to wait
            compared = _compare(session, job, loss_of, asked, watch) if asked and job.data.questions else None
            if not trained.stopped or 0 < len(trained.steps) < job.updates:  # else its answers would be missing for good
                _write_outputs(folder, job, loaded, trained, compared)
    return Run(folder, session, compared, trained.stopped)


@dataclasses.dataclass(frozen=True)
class _Trained:
    """steps: every update's report, those before a resume too. best: the adapter that was put in at the end as the best.
    stopped: the signal that ended it early, 0 if none did."""

    steps: list[StepReport]
    best: Best | None
    stopped: int


def _train(
    model: Any, loss_of: PackLoss, job: Prepared, folder: Path, origin: dict[str, Any], watch: Watch, found: Checkpoint | None
) -> _Trained | None:
    """Train from ``found`` on. None if memory ran out; what was reached is in the checkpoints."""
    parameters, recipe = adapter_parameters(model), job.recipe
    before = host_copy(parameters)
    head = found.metrics if found else b""
    steps = [StepReport(**json.loads(line)) for line in head.splitlines()]
    replace_durably(folder / "metrics.jsonl", head)
    assert recipe.learning_rate is not None
    with interruptible() as interrupt, (folder / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
        begun_at = found.state if found else None
        keeper = RunKeeper(folder, recipe, origin, lambda: interrupt.asked, begun_at.best if begun_at else None)
        updates = (model, loss_of, job.loader, recipe, recipe.learning_rate, eval_packs(job))
        reports = train_loop(*updates, keeper, begun_at, lambda line: watch(Note(line)))
        divergence = guard.Divergence(model.config.get_text_config().vocab_size, steps[0].loss if steps else 0.0)
        try:
            with guard.working_device(f"`tunesmith resume {folder}` goes on from its newest checkpoint"):
                for report in reports:
                    divergence.check(report.loss, report.step)
                    steps.append(report)
                    metrics.write(json.dumps(dataclasses.asdict(report)) + "\n")
                    metrics.flush()
                    watch(report)
        except (MemoryError, RuntimeError) as error:
            if not guard.ran_out_of_memory(error):
                raise
            return None
    if interrupt.asked:
        reached = f"Stopped after update {steps[-1].step if steps else 0} of {job.updates}"
        watch(Note(f"{reached}; saving what was reached. `tunesmith resume {folder}` goes on"))
    if keeper.best:
        put_adapter(parameters, keeper.best.adapter)
        watch(Note(f"The adapter is that of update {keeper.best.step}, with the lowest held-out loss ({keeper.best.loss:.4f})"))
    if not interrupt.asked:
        guard.check_changed(before, parameters)
    return _Trained(steps, keeper.best, interrupt.number)


def _compare(session: Session, job: Prepared, loss_of: PackLoss, samples: int, watch: Watch) -> Comparison | None:
    """Base against tuned on held-out rows, at the end of a run, without the suites. None if memory ran out, which must not
    cost the run its report."""
    judged = Judged(job.data.questions, job.data.asides)
    rows, seconds = max(SCORED, samples), ANSWERING if samples <= SAMPLES else math.inf
    try:
        return judge(session, judged, watch, rows=rows, loss_of=loss_of, answers=samples, seconds=seconds, suites=False)
    except (MemoryError, RuntimeError) as error:
        if not guard.ran_out_of_memory(error):
            raise
    watch(Note(f"Memory ran out while base and tuned were compared; `tunesmith compare {job.recipe.output_dir}` does it later"))
    return None


def _write_outputs(folder: Path, job: Prepared, loaded: Loaded, trained: _Trained, compared: Comparison | None) -> None:
    steps, best = trained.steps, trained.best
    facts = run_facts(job, loaded, steps)
    if best:
        facts["Training"]["kept"] = f"update {best.step}, the lowest held-out loss ({best.loss:.4f})"
    title = f"{Path(job.recipe.model_name_or_path).name} on {Path(job.recipe.dataset_name).name}"
    write_report(folder / "report.html", title, facts, steps, compared)
    if compared:
        facts["Held-out rows"] = compared.facts
    write_card(folder, job.source.base, {k: v for rows in facts.values() for k, v in rows.items()})
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")}
    origin = {"base": job.source.base, "revision": job.source.commit(), "data_sha256": job.data.facts.sha256, "versions": versions}
    if job.data.questions:
        origin["held_out_sha256"] = fingerprint(job.data.questions)
    write_manifest(folder, {**origin, "updates": {"done": steps[-1].step, "of": job.updates}, "facts": facts})
