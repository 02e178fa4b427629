"""What a run looks like on a terminal: notes, the plan, a progress bar, tables."""

import shlex
import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from tunesmith.data.conversation import Conversation
from tunesmith.events import Event, Loaded, Note, Prepared, Progress
from tunesmith.plan.memory import footprint, kbit_prepared_footprint
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
        return Text.assemble((text, "cyan"), f"  {_minutes(left)} left" if left else "")


class Show:
    """Watches a run and draws it; on anything but a terminal it prints lines instead of a bar.

    Args:
        notes: lines to print first.
    """

    def __init__(self, notes: Sequence[str] = ()) -> None:
        for line in notes:
            self._line(Text(f"  {line}", "dim"))
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
                self._line(Text(f"  {event.text}", "dim"))
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

    def _line(self, text: Text) -> None:
        console.print(text)

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
        sizes = ", ".join(f"{name} {size / 1e6:,.0f} MB" for name, size in event.bytes.items())
        share = f"{event.trainable:,} of {event.total:,} parameters trained ({event.trainable / event.total:.2%})"
        quantised = f"; {event.quantised:.0%} of the linear weights are quantised" if event.quantised else ""
        for line in (f"weights: {sizes}{quantised}", f"{share}: {', '.join(event.targets)}", f"{event.linears}; {event.path}"):
            self._line(Text(f"  {line}", "dim"))

    def _step(self, report: StepReport) -> None:
        self.seconds.append(report.seconds)
        # The first update is longer than the others, an epoch's last is shorter.
        left = (report.total - report.step) * fmean([*self.seconds][1:] or self.seconds)
        rate = report.tokens / report.seconds
        loss = f"loss {report.loss:.3f}" + (f", held out {report.eval_loss:.3f}" if report.eval_loss is not None else "")
        if console.is_terminal:
            self._advance("training", report.step, report.total, loss=loss, rate=rate, left=left)
        elif report.step % self.every == 0 or report.step in (1, report.total) or report.eval_loss is not None:
            console.print(f"update {report.step}/{report.total}  {loss}  {rate:,.0f} tokens/s  {_minutes(left)} left")
        if report.step == report.total and console.is_terminal:
            self._stop()


def _minutes(seconds: float) -> str:
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"


def plan_table(job: Prepared) -> Table:
    """What is about to happen, and what it will take."""
    data, plan, recipe = job.data.facts, job.plan, job.recipe
    quantised = "NF4" if recipe.load_in_4bit and recipe.bnb_4bit_quant_type == "nf4" else "FP4" if recipe.load_in_4bit else ""
    quantised = quantised or ("8-bit" if recipe.load_in_8bit else "not quantised")
    cut = "nothing is cut" if not data.cut_rows else f"[bold red]{data.cut_rows} rows cut, {data.lost_tokens} answer tokens lost[/]"
    rows = {
        "model": f"{job.source.base}, {job.shape.parameters / 1e6:,.0f} M parameters, {quantised}",
        "data": f"{data.rows:,} rows to train on, {data.held_out:,} held out; {data.columns}",
        **({"left out": data.bad.describe()} if data.bad.count else {}),
        **({"to know": "; ".join(data.notes)} if data.notes else {}),
        "tokens": f"{data.tokens:,} an epoch, {data.trained:,} of them trained; max_length {data.max_length}, {cut}",
        "training": f"{job.updates} updates of {recipe.per_device_train_batch_size} × {recipe.gradient_accumulation_steps} "
        f"packed rows ({recipe.packing}); learning rate {recipe.learning_rate:g}, {recipe.lr_scheduler_type}",
        "adapter": f"LoRA r {recipe.lora_r}, alpha {recipe.lora_alpha:g}, dropout {recipe.lora_dropout:g}",
        "compute": f"{str(job.compute.dtype).removeprefix('torch.')} on {job.compute.device}: {job.compute.reason}",
        "way": f"{plan.chosen.way}: {plan.reason}",
        "memory": f"{plan.bytes / 1e9:.2f} GB predicted at the peak, {plan.available / 1e9:.1f} GB free",
        "time": f"{_minutes(plan.seconds)} minutes predicted",
        "run folder": str(recipe.output_dir),
    }
    if recipe.load_in_4bit:
        loaded = footprint(job.shape, 4, job.compute.dtype.itemsize)
        prepared = kbit_prepared_footprint(job.shape, recipe.lora_r)
        rows["footprint"] = f"{loaded:,} bytes as loaded, {prepared:,} had peft prepared it for k-bit training with fp32"
    table = Table(title="The plan", title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    for key, value in rows.items():
        table.add_row(Text(key, "cyan"), value if key == "tokens" else escape(value))
    return table


def ways_table(job: Prepared) -> Table:
    """The ways worth taking, what each takes, and which one is chosen."""
    plan = job.plan
    table = Table(title="Ways to run it", title_justify="left", title_style="bold")
    for column, justify in (("", "left"), ("way", "left"), ("memory", "right"), ("time", "right"), ("fits", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for row in plan.rows:
        if row != plan.chosen and any(o.bytes <= row.bytes and o.seconds < row.seconds for o in plan.rows):
            continue  # another way takes less of both
        style = "bold green" if row == plan.chosen else "" if row.fits else "dim"
        table.add_row(
            "→" if row == plan.chosen else "", str(row.way), f"{row.bytes / 1e9:.2f} GB", _minutes(row.seconds),
            "yes" if row.fits else "no", style=style,
        )  # fmt: skip
    return table


def short_question(held_out: Iterable[Conversation]) -> str:
    """One of the rows' own that fits on a command line."""
    asked = (message.content for talk in held_out for message in talk.messages if message.role == "user")
    return next((text for text in asked if text.isprintable() and 0 < len(text) <= LONGEST_QUESTION), QUESTION)


def next_commands(folder: Path, question: str) -> Text:
    """What to type next."""
    lines = (
        (f"tunesmith chat {shlex.quote(str(folder))} --prompt {shlex.quote(question)}", "ask it something"),
        (f"tunesmith chat {folder}", "talk to it"),
        (f"open {folder}/report.html", "curves, settings, every answer"),
    )
    text = Text("\nNext\n", "bold")
    for command, what in lines:
        text.append(f"  {command}", "bold cyan").append(f"   {what}\n", "dim")
    return text
