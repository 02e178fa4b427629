"""`tunesmith preview MODEL DATA [run.yaml] [--settings]`: the very tokens that would be trained, and what is odd about them."""

import argparse
import dataclasses
import json
import re
import shlex
import sys
import time
from os.path import expanduser
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.cli.counts import count
from tunesmith.cli.page_file import check_page, write_page
from tunesmith.cli.parser import Parser
from tunesmith.cli.settings import add_settings, read_settings, settings_in
from tunesmith.errors import RunError
from tunesmith.recipe import ALIASES, Recipe

if TYPE_CHECKING:
    from tunesmith.data.preview import Verdict


def run(arguments: list[str]) -> int:
    """Look at the data; exit code 1 if they will not train."""
    options, rest, recipe, aliases = _parse(arguments)
    page = Path(expanduser(options.html)) if options.html else None
    if page is not None:
        check_page(page, options.force, "preview.html")

    from tunesmith.places import check_recipe

    check_recipe(recipe, begins=False)

    from rich.console import Console

    from tunesmith.base.catalog import cache_dir, resolve
    from tunesmith.base.context import context_of, positions_in
    from tunesmith.base.tokenizer import load_tokenizer
    from tunesmith.cli.preview_page import page_of
    from tunesmith.cli.preview_terminal import show
    from tunesmith.data.cache import Cache
    from tunesmith.data.preview import WILL_NOT, preview
    from tunesmith.data.render import Renderer

    console = Console(highlight=False)
    with _Waiting() as waiting:
        for line in aliases:
            waiting.tell(line)
        source = resolve(recipe.model_name_or_path, waiting.tell, weights=False)
        renderer = Renderer(load_tokenizer(source, recipe.chat_template), recipe.assistant_only_loss)
        limit = context_of(positions_in(source), renderer.tokenizer)
        seen = preview(recipe, renderer, limit, options.rows, options.row, waiting, Cache(cache_dir() / "rows"))
    command = _next(rest, seen.verdict, recipe)
    if page is not None:
        write_page(page, page_of(seen, command), options.force)
    if options.json:
        print(json.dumps({**dataclasses.asdict(seen), "next": command}, indent=2))
    else:
        show(seen, command, console)
        if page is not None:
            console.print(f"  The same as a page: {page}", style="dim", markup=False)
    return int(seen.verdict.word == WILL_NOT)


def _next(settings: list[str], verdict: "Verdict", recipe: Recipe) -> str:
    """The command to type next: with the settings that mend it if there are any, to train if it is good then; and into another
    folder than one that is taken, as that of the run whose run.yaml this may be."""
    from tunesmith.places import check_output, free_folder

    for name, value in verdict.settings.items():
        settings = _with(settings, name, str(value))
    trains = verdict.word != "will not train" or "on_bad_row" in verdict.settings
    try:
        check_output(recipe)
    except RunError:
        free = free_folder(Path(re.sub(r"(-[0-9]+)?/*$", "", str(recipe.output_dir))))
        settings = _with(settings, "output_dir", str(free)) if trains else settings
    return shlex.join(["tunesmith", "train" if trains else "preview", *settings])


def _with(arguments: list[str], setting: str, value: str) -> list[str]:
    """The arguments with a setting's value in the place of one that is given under any of its names, or at the end."""
    named = [f"--{setting.replace('_', '-')}", value]
    made: list[str] = []
    for key, _, words in settings_in(arguments):
        if ALIASES.get(key.replace("-", "_")) == setting:
            words, named = named, []
        made += words
    return made + named


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

    def tell(self, line: str) -> None:
        """A line beside the bar."""
        self.console.print(f"  {line}", style="dim", markup=False)

    def __call__(self, what: str, done: int, total: int) -> None:
        if time.monotonic() - self.start < 1 or not sys.stderr.isatty():
            return
        self.bar.start()
        if what != self.what:
            self.what = what
            self.bar.reset(self.task, total=total, description=what)
        self.bar.update(self.task, completed=done, total=total)
