"""What a run looks like on a terminal: notes, the plan, a progress bar, tables."""

import shlex
import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from types import TracebackType

from rich.console import Console, Group
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from tunesmith.cli.preview_words import PACKED
from tunesmith.data.conversation import Conversation
from tunesmith.events import Event, Loaded, Note, Prepared, Progress
from tunesmith.plan.memory import footprint, kbit_prepared_footprint
from tunesmith.recipe import Recipe
from tunesmith.training.loop import StepReport

console = Console(highlight=False)

RECENT = 64
"""Updates that tell how long the rest will take."""
QUESTION, LONGEST_QUESTION = "What can you do?", 48


class _Rate(ProgressColumn):
    """Tokens a second of the last update, and time left."""

    def render(self, task: Task) -> Text:
        left = task.fields["left"]
        text = f"{task.fields['rate']:,.0f} tokens/s" if task.fields["rate"] else ""
        return Text.assemble((text, "cyan"), f"  {duration(left)} left" if left else "")


class Show:
    """Watches a run and draws it; on anything but a terminal it prints lines instead of a bar.

    Args:
        notes: lines to print first.
    """

    def __init__(self, notes: Sequence[str] = ()) -> None:
        for line in notes:
            self._line(line)
        self.bar = Bar(
            TextColumn("{task.description:>9}"), BarColumn(bar_width=28), TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[loss]}"), _Rate(), console=console, transient=False,
        )  # fmt: skip
        self.tasks: dict[str, TaskID] = {}
        self.start = time.monotonic()
        self.every = 10
        self.seconds = deque[float](maxlen=RECENT)
        self.question = QUESTION

    def __enter__(self) -> "Show":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.stop()

    def __call__(self, event: Event) -> None:
        match event:
            case Note():
                self._line(event.text)
            case Progress():
                self._advance(event.what, event.done, event.total)
            case Prepared():
                self._stop()
                self.every = event.recipe.logging_steps
                self.question = short_question(event.data.questions)
                console.print(plan_table(event))
            case Loaded():
                self._loaded(event)
            case StepReport():
                self._step(event)

    def _line(self, text: str) -> None:
        if console.is_terminal and "`" not in text:
            console.print(Padding(Text(text, "dim"), (0, 0, 0, 2), expand=False))
        else:  # a command is to be copied in one piece, and a log has lines as long as they are
            console.print(Text(f"  {text}", "dim"), soft_wrap=True)

    def _stop(self) -> None:
        self.bar.stop()
        for task in self.bar.task_ids:
            self.bar.remove_task(task)
        self.tasks.clear()

    def _advance(self, what: str, done: int, total: int, **fields: object) -> None:
        if not console.is_terminal:
            return
        if what not in self.tasks:
            self._stop()
            self.tasks[what] = self.bar.add_task(what, total=total, loss="", rate=0, left=0)
            self.bar.start()
        self.bar.update(self.tasks[what], completed=done, total=total, **fields)  # type: ignore[arg-type]

    def _loaded(self, event: Loaded) -> None:
        sizes = ", ".join(f"{size / 1e6:,.0f} MB in {name}" for name, size in event.bytes.items())
        quantised = f"; {event.quantised:.0%} of the linear weights are quantised" if event.quantised else ""
        share = f"{event.trainable:,} of {event.total:,} parameters ({event.trainable / event.total:.2%})"
        self._line(f"weights: {sizes}{quantised}")
        self._line(f"trained: {share}, in an adapter on {', '.join(event.targets)}")
        self._line(f"computed by: {event.linears}; {event.path}")

    def _step(self, report: StepReport) -> None:
        self.seconds.append(report.seconds)
        # The first update is longer than the others, an epoch's last is shorter.
        left = (report.total - report.step) * fmean([*self.seconds][1:] or self.seconds)
        rate = report.tokens / report.seconds
        loss = f"loss {report.loss:.3f}" + (f", held out {report.eval_loss:.3f}" if report.eval_loss is not None else "")
        if console.is_terminal:
            self._advance("training", report.step, report.total, loss=loss, rate=rate, left=left)
        elif report.step % self.every == 0 or report.step in (1, report.total) or report.eval_loss is not None:
            rest = f"  {duration(left)} left" if report.step < report.total else ""
            console.print(f"update {report.step}/{report.total}  {loss}  {rate:,.0f} tokens/s{rest}", soft_wrap=True)
        if report.step == report.total and console.is_terminal:
            self._stop()


def duration(seconds: float) -> str:
    """``38 s``, ``4 min 19 s`` or ``2 h 5 min``."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def plan_table(job: Prepared) -> Table:
    """What is about to happen, and what it will take."""
    data, plan, recipe = job.data.facts, job.plan, job.recipe
    cut = "nothing is cut" if not data.cut_rows else f"[bold red]{data.cut_rows} rows cut, {data.lost_tokens} answer tokens lost[/]"
    allowed = "allowed" if recipe.memory else "free"
    rows = {
        "model": f"{_name(job)}, {job.shape.parameters / 1e6:,.0f} million parameters, {_stored(recipe)}",
        "data": f"{data.rows:,} rows to train on, {data.held_out:,} held out; {data.columns}",
        **({"left out": data.bad.describe()} if data.bad.count else {}),
        **({"to know": "; ".join(data.notes)} if data.notes else {}),
        "tokens": f"{data.tokens:,} in one pass over the data, {data.trained:,} of them to be learnt; "
        f"rows of {data.max_length} at most (max_length), {cut}",
        "training": _training(job),
        "adapter": f"LoRA of rank {recipe.lora_r}, alpha {recipe.lora_alpha:g}, dropout {recipe.lora_dropout:g}",
        "runs on": f"{job.compute.device}, computing in {str(job.compute.dtype).removeprefix('torch.')}: {job.compute.reason}",
        "way": f"{plan.chosen.way}: {plan.reason}",
        "memory": f"{plan.bytes / 1e9:.2f} GB predicted at the peak; {plan.available / 1e9:.1f} GB are {allowed}",
        "time": _time(job),
        "run folder": str(recipe.output_dir),
    }
    if recipe.load_in_4bit:
        loaded = footprint(job.shape, 4, job.compute.dtype.itemsize)
        prepared = kbit_prepared_footprint(job.shape, recipe.lora_r)
        rows["base"] = f"{loaded:,} bytes as loaded; {prepared:,} if peft prepared it, which puts all that is not 4-bit in fp32"
    table = Table(title="The plan", title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    for key, value in rows.items():
        style = "" if plan.fits or key not in ("way", "memory") else "bold red"
        table.add_row(Text(key, "cyan", no_wrap=True), value if key == "tokens" else escape(value), style=style)
    return table


def _name(job: Prepared) -> str:
    """The model as it was named where that is a GGUF file, which is a folder of the cache by now."""
    named = job.asked.model_name_or_path
    return named if named.endswith(".gguf") else job.source.base


def _time(job: Prepared) -> str:
    if not job.compute.here:
        return "not known: it is measured on the GPU"
    return f"{duration(job.plan.seconds)} of training predicted, at the speed this machine has at the moment"


def _stored(recipe: Recipe) -> str:
    """How the base's weights are held."""
    if recipe.load_in_4bit:
        return f"stored in 4 bits ({recipe.bnb_4bit_quant_type.upper()})"
    return "stored in 8 bits" if recipe.load_in_8bit else "not quantised"


def _training(job: Prepared) -> str:
    recipe = job.recipe
    passes = f" in {recipe.gradient_accumulation_steps} parts" if recipe.gradient_accumulation_steps > 1 else ""
    batch = (recipe.per_device_train_batch_size or 1) * recipe.gradient_accumulation_steps
    updates = "1 update" if job.updates == 1 else f"{job.updates:,} updates"
    rows = "1 row" if batch == 1 else f"{batch} rows"
    return (
        f"{updates} of {rows}{passes}; packing: {PACKED[recipe.packing]}; learning rate {recipe.learning_rate:g}, "
        f"schedule {recipe.lr_scheduler_type}"
    )


EXPLAINED = {
    "weights kept": "the 4-bit weights are kept unpacked, too: quickest",
    "dequantised at each use": "the 4-bit weights are unpacked anew each time",
    "base streamed from the host": "the 4-bit weights stay in this computer's memory and come to the GPU layer by layer",
    "layers recomputed": "what the backward pass needs is computed twice, not kept",
    "activations on the host": "what the backward pass needs waits in this computer's memory",
    "micro-batch split": "the rows of an update go through in so many parts",
}
"""What stands in a `Way`'s name, in more words."""


def ways_table(job: Prepared) -> Group:
    """The ways worth taking, what each takes, which one is chosen, and what their names mean."""
    plan = job.plan
    table = Table(title="Ways to run it: all learn the same", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column, justify in (("", "left"), ("way", "left"), ("memory", "right"), ("time", "right"), ("fits", "left")):
        table.add_column(column, justify=justify, no_wrap=column not in ("", "way"))  # type: ignore[arg-type]
    names = ""
    for row in sorted(plan.rows, key=lambda row: row.seconds):
        if row != plan.chosen and any(o.bytes <= row.bytes and o.seconds < row.seconds for o in plan.rows):
            continue  # another way takes less of both
        chosen = "bold green" if plan.fits else "bold red"
        style = chosen if row == plan.chosen else "" if row.fits else "dim"
        table.add_row(
            "→" if row == plan.chosen else "", str(row.way), f"{row.bytes / 1e9:.2f} GB",
            duration(row.seconds) if job.compute.here else "–", "yes" if row.fits else "no", style=style,
        )  # fmt: skip
        names += f"{row.way}\n"
    told = {name: what for name, what in EXPLAINED.items() if name in names}
    if not job.recipe.load_in_4bit:
        told.pop("weights kept", None)  # there is nothing to unpack
    words = [f"{name}: {what}" for name, what in told.items()]
    return Group(table, Text("\n" + "\n".join(words), "dim"))


def short_question(held_out: Iterable[Conversation]) -> str:
    """One of the rows' own that fits on a command line."""
    asked = (message.content for talk in held_out for message in talk.messages if message.role == "user")
    return next((text for text in asked if text.isprintable() and 0 < len(text) <= LONGEST_QUESTION), QUESTION)


def next_commands(folder: Path, question: str) -> Text:
    """What to type next."""
    run = shlex.quote(str(folder))
    lines = (
        ("ask it something", f"tunesmith chat {run} --prompt {shlex.quote(question)}"),
        ("talk to it", f"tunesmith chat {run}"),
        ("see curves, settings, every answer", f"{folder}/report.html in a browser"),
    )
    text = Text("\nNext\n", "bold")
    for what, command in lines:
        text.append(f"  {what:<36}", "dim not bold").append(f"{command}\n", "bold cyan")
    return text
