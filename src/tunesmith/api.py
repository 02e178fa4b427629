"""The verbs: train, load. The only file that knows every room."""

import dataclasses
import importlib.metadata
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.base.adapter import adapter_parameters, attach, open_adapter
from tunesmith.base.catalog import ModelSource, resolve
from tunesmith.base.lean import speed_up
from tunesmith.base.load import choose_compute, load_model, quantised_share, weight_bytes
from tunesmith.base.tokenizer import load_tokenizer
from tunesmith.data.dataset import Dataset, prepare
from tunesmith.data.loader import Loader, default_batch_size
from tunesmith.data.packing import Pack, make_pack
from tunesmith.data.render import Renderer
from tunesmith.errors import AdapterError, RunError
from tunesmith.events import Loaded, Note, Prepared, Progress, Watch
from tunesmith.export.adapter import save_adapter
from tunesmith.export.card import write_card
from tunesmith.export.manifest import write_manifest
from tunesmith.facts import reset_peak, run_facts
from tunesmith.generate.engine import Sampling
from tunesmith.generate.score import exact_matches
from tunesmith.generate.session import Session
from tunesmith.plan.memory import Shape, available_bytes, shape_of
from tunesmith.plan.plan import make_plan
from tunesmith.recipe import Recipe
from tunesmith.training import guard
from tunesmith.training.interrupt import interruptible
from tunesmith.training.loop import StepReport, total_updates
from tunesmith.training.loop import train as train_loop
from tunesmith.training.optimizer import check_optimizer
from tunesmith.training.report import Change, write_report
from tunesmith.training.schedule import default_learning_rate
from tunesmith.training.step import PackLoss, choose_loss


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


def prepare_run(recipe: Recipe, watch: Watch = lambda event: None) -> tuple[Prepared, Renderer]:
    """Everything up to the plan: model found, data rendered and packed, memory and time predicted."""
    check_output(recipe)
    source = resolve(recipe.model_name_or_path, lambda line: watch(Note(line)))
    shape = shape_of(source)
    compute = choose_compute(recipe)
    check_optimizer(recipe, compute.device)
    renderer = Renderer(load_tokenizer(source, recipe.chat_template), recipe.assistant_only_loss)
    limit = min(shape.positions, renderer.tokenizer.model_max_length)
    data = prepare(recipe, renderer, limit, lambda done, total: watch(Progress("rows", done, total)))
    resolved = _resolve(recipe, shape, data)
    assert resolved.per_device_train_batch_size is not None
    loader = Loader(
        data.rows, resolved.per_device_train_batch_size, recipe.gradient_accumulation_steps,
        recipe.shuffle, recipe.seed, recipe.shared_prefix,
    )  # fmt: skip
    updates = total_updates(loader, recipe)
    packs = [pack for window in loader.epoch(0) for pack in window]
    plan = make_plan(shape, resolved, compute, packs, updates)
    prepared = Prepared(resolved, source, shape, compute, data, loader, plan, updates)
    watch(prepared)
    return prepared, renderer


def _resolve(recipe: Recipe, shape: Shape, data: Dataset) -> Recipe:
    """The recipe with every default that depends on model or data filled in."""
    length, rows = data.facts.max_length, data.facts.packed_rows
    batch = default_batch_size(rows, length, recipe.num_train_epochs, recipe.gradient_accumulation_steps)
    return recipe.model_copy(
        update={
            "learning_rate": recipe.learning_rate or default_learning_rate(shape.hidden),
            "max_length": length,
            "per_device_train_batch_size": recipe.per_device_train_batch_size or batch,
            "output_dir": recipe.output_dir or str(_free_folder(recipe)),
            "model_name_or_path": _absolute(recipe.model_name_or_path),
        }
    )


def _absolute(reference: str) -> str:
    """A path as seen from anywhere, so that the run can be opened from anywhere; hub ids as they are."""
    path = Path(reference).expanduser()
    return str(path.resolve()) if path.exists() else reference


def run_recipe(recipe: Recipe, watch: Watch = lambda event: None, samples: int = 8) -> Run:
    """Train as the recipe says, save, compare ``samples`` held-out rows before and after, and report."""
    job, renderer = prepare_run(recipe, watch)
    watch(Note(f"Loading {job.source.base}"))
    with guard.enough_memory():
        model, loss_of, loaded = _load(job)
        watch(loaded)
        folder = _claim(job.recipe)
        steps = _train(model, loss_of, job, folder, watch)
        save_adapter(model, renderer.tokenizer, folder)
        session = Session(model.eval(), renderer)
        changes = _compare(session, job.data, samples, watch) if samples else []
    _write_outputs(folder, job, loaded, steps, changes)
    return Run(folder, session, changes)


def _load(job: Prepared) -> tuple[Any, PackLoss, Loaded]:
    """The model with a fresh adapter on its fastest path, the loss of a pack, and what to tell the user."""
    recipe = job.recipe
    reset_peak(job.compute)
    base = load_model(job.source, recipe, job.compute)
    stored, quantised = weight_bytes(base), quantised_share(base)
    model = attach(base, recipe, job.source.base, job.source.revision)
    linears = speed_up(model, job.compute.dtype, job.plan.keep)
    loss_of, path = choose_loss(base)
    if recipe.gradient_checkpointing:
        # On a GPU dropout is drawn from a counter, so there is no random state to bring back (which would end a capture).
        on_cpu = job.compute.device.type == "cpu"
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False, "preserve_rng_state": on_cpu})
    trainable, total = model.get_nb_trainable_parameters()
    targets = sorted(model.peft_config["default"].target_modules)
    return model, loss_of, Loaded(stored, quantised, trainable, total, targets, linears, path)


def _train(model: Any, loss_of: PackLoss, job: Prepared, folder: Path, watch: Watch) -> list[StepReport]:
    before = guard.snapshot(adapter_parameters(model))
    steps: list[StepReport] = []
    assert job.recipe.learning_rate is not None
    updates = train_loop(model, loss_of, job.loader, job.recipe, job.recipe.learning_rate, _eval_packs(job))
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


def _eval_packs(job: Prepared) -> list[Pack]:
    """Held-out examples, like lengths together, in packs of about the size of a training pack."""
    examples = sorted(job.data.held_out, key=lambda e: len(e.input_ids))
    assert job.recipe.max_length is not None
    assert job.recipe.per_device_train_batch_size is not None
    room = job.recipe.per_device_train_batch_size * job.recipe.max_length
    packs: list[list[Any]] = []
    used = room
    for example in examples:
        if used + len(example.input_ids) > room:
            packs.append([])
            used = 0
        packs[-1].append(example)
        used += len(example.input_ids)
    return [make_pack([[e] for e in pack], job.recipe.shared_prefix) for pack in packs]


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


def check_output(recipe: Recipe) -> None:
    """Raises RunError if the output folder holds anything already."""
    folder = Path(recipe.output_dir) if recipe.output_dir else None
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(
            f"{folder} is not empty: it holds another run or other files.", "Give another --output-dir, or move it away."
        )


def _free_folder(recipe: Recipe) -> Path:
    parts = (Path(recipe.model_name_or_path).stem, Path(recipe.dataset_name).stem)
    name = "-".join(re.sub(r"[^A-Za-z0-9._-]+", "-", part).strip("-.") or "run" for part in parts)
    number = 1
    while (folder := Path("runs") / f"{name}-{number}").exists():
        number += 1
    return folder


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
    model = open_adapter(load_model(source, recipe, compute), folder)
    kept = shape_of(source).linear_weights * compute.dtype.itemsize
    room = not recipe.load_in_4bit or kept < 0.8 * available_bytes(compute.device)
    speed_up(model, compute.dtype, recipe.dequantize == "always" or (recipe.dequantize == "auto" and room))
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
