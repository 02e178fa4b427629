"""`tunesmith preview MODEL DATA [run.yaml] [--settings]`: the very tokens that would be trained, and what is odd about them."""

import argparse
import dataclasses
import json
import shlex
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.cli.counts import count
from tunesmith.cli.page_file import check_free, write_page
from tunesmith.cli.parser import Parser
from tunesmith.cli.settings import add_settings, read_settings
from tunesmith.recipe import ALIASES, Recipe

if TYPE_CHECKING:
    from tunesmith.base.catalog import ModelSource
    from tunesmith.data.preview import Verdict


def run(arguments: list[str]) -> int:
    """Look at the data; exit code 1 if they will not train."""
    options, rest, recipe, aliases = _parse(arguments)
    page = Path(options.html).expanduser() if options.html else None
    if page is not None:
        check_free(page, options.force, "preview.html")

    from rich.console import Console

    from tunesmith.base.catalog import cache_dir, resolve
    from tunesmith.base.context import context_of
    from tunesmith.base.tokenizer import load_tokenizer
    from tunesmith.cli.preview_page import page_of
    from tunesmith.cli.preview_terminal import show
    from tunesmith.data.cache import Cache
    from tunesmith.data.preview import WILL_NOT, preview
    from tunesmith.data.render import Renderer

    console = Console(highlight=False)
    with _Waiting() as waiting:
        for line in aliases:
            waiting.console.print(f"  {line}", style="dim", markup=False)
        source = resolve(recipe.model_name_or_path, lambda line: waiting.console.print(f"  {line}", style="dim", markup=False))
        renderer = Renderer(load_tokenizer(source, recipe.chat_template), recipe.assistant_only_loss)
        limit = context_of(_positions(source), renderer.tokenizer)
        seen = preview(recipe, renderer, limit, options.rows, options.row, waiting, Cache(cache_dir() / "rows"))
    command = _next(rest, seen.verdict)
    if page is not None:
        write_page(page, page_of(seen, command), options.force)
    if options.json:
        print(json.dumps({**dataclasses.asdict(seen), "next": command}, indent=2))
    else:
        show(seen, command, console)
        if page is not None:
            console.print(f"  The same as a page: {page}", style="dim", markup=False)
    return int(seen.verdict.word == WILL_NOT)


def _positions(source: "ModelSource") -> int:
    """Tokens the model can see. Raises ModelError.

    The config alone says so, in a quarter of the time that the room which builds models takes to be imported; what is wrong
    with a model is for that room to say.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    from tunesmith.base.context import positions_of

    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, StrictDataclassError):
        config = AutoConfig.from_pretrained(source.path, revision=source.revision, trust_remote_code=False)
        if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
            return positions_of(config)
    from tunesmith.plan.memory import shape_of

    return shape_of(source).positions


def _next(settings: list[str], verdict: "Verdict") -> str:
    """The command to type next: with the one setting that mends it if there is one, to train if it is good."""
    settings = list(settings)
    if verdict.max_length:
        settings = [*_without(settings, "max_length"), "--max-length", str(verdict.max_length)]
    if verdict.skip:
        settings += ["--on-bad-row", "skip"]
    mended = verdict.word != "will not train" or verdict.skip
    return shlex.join(["tunesmith", "train" if mended else "preview", *settings])


def _without(words: list[str], setting: str) -> list[str]:
    """The arguments less a setting under any of its names, with its value."""
    kept: list[str] = []
    skip = False
    for word in words:
        key, equals, _ = word.removeprefix("--").partition("=")
        if skip:
            skip = False
        elif (word.startswith("--") or equals) and ALIASES.get(key.replace("-", "_")) == setting:
            skip = not equals
        else:
            kept.append(word)
    return kept


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str], Recipe, list[str]]:
    """The options of this command, the arguments that are settings, the recipe they make, and the aliases used."""
    own = Parser(prog="tunesmith preview", add_help=False, allow_abbrev=False)
    own.add_argument("--rows", type=count(), default=3, metavar="N", help="rows shown as tokens [3]")
    own.add_argument("--row", metavar="K", help="show this row, by its line or number as messages name it, whole")
    own.add_argument("--html", metavar="FILE", help="write the same as a page")
    own.add_argument("--force", action="store_true", help="overwrite that page")
    own.add_argument("--json", action="store_true", help="print JSON and nothing else")
    options, rest = own.parse_known_args(arguments)
    usage = "tunesmith preview [MODEL] [DATA] [run.yaml] [--rows N] [--row K] [--html FILE] [--json] [--setting VALUE …]"
    parser = Parser(
        prog="tunesmith preview", usage=usage, description="The tokens that would be trained, and what to know about the data.",
        parents=[own],
    )  # fmt: skip
    add_settings(parser)
    aliases: list[str] = []
    return options, rest, read_settings(parser, rest, aliases.append), aliases


class _Waiting:
    """A bar on standard error, from the second on that something takes more; nothing where that is no terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = Console(stderr=True)
        columns = TextColumn("{task.description:>16}"), BarColumn(28), TextColumn("{task.completed:,}/{task.total:,}")
        self.bar = Progress(*columns, TimeRemainingColumn(), console=self.console, transient=True)
        self.task = self.bar.add_task("", total=1)
        self.what, self.start = "", time.monotonic()

    def __enter__(self) -> "_Waiting":
        return self

    def __exit__(self, *error: object) -> None:
        if self.what:  # a bar that never ran would print an empty line
            self.bar.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        if time.monotonic() - self.start < 1 or not sys.stderr.isatty():
            return
        self.bar.start()
        if what != self.what:
            self.what = what
            self.bar.reset(self.task, total=total, description=what)
        self.bar.update(self.task, completed=done, total=total)
