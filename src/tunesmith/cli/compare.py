"""`tunesmith compare RUN [DATA]`: base against tuned, row by row and in figures, and what tuning cost."""

import argparse
import json
import sys
from contextlib import nullcontext
from pathlib import Path

from tunesmith.errors import RunError


def run(arguments: list[str]) -> int:
    """Compare, show, and write the page if one is asked for."""
    parser = argparse.ArgumentParser(
        prog="tunesmith compare",
        description="Base against tuned on rows the run held out, or on yours, with a verdict; and what tuning cost it of facts, "
        "arithmetic, JSON, instructions and general text. The rules are in docs/judge.md.",
    )
    parser.add_argument("run", metavar="RUN", help="the run's folder, or any folder with a LoRA adapter")
    parser.add_argument("data", nargs="?", metavar="DATA", help="rows to compare on; the run's own held-out rows by default")
    parser.add_argument("--rows", type=_count, default=200, metavar="N", help="look at so many rows at most, spread over all [200]")
    parser.add_argument("--no-suites", action="store_true", help="rows and general text only: quicker")
    parser.add_argument("--html", metavar="FILE", help="write all rows as a page")
    parser.add_argument("--force", action="store_true", help="overwrite that page")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    options = parser.parse_args(arguments)
    page = Path(options.html).expanduser() if options.html else None
    if page is not None:
        _check_free(page, options.force)

    from tunesmith.api import load
    from tunesmith.cli.compare_terminal import show_comparison
    from tunesmith.cli.show import Show, console
    from tunesmith.generate.compare import as_json
    from tunesmith.generate.compare_page import page_of

    tuned = load(Path(options.run))
    with nullcontext(_tell) if options.json else Show() as watch:
        compared = tuned.compare(options.data, rows=options.rows, suites=not options.no_suites, watch=watch)
    if options.json:
        print(json.dumps(as_json(compared), indent=2, ensure_ascii=False))
    else:
        show_comparison(compared, console)
        if page is None:
            console.print("  All rows, sorted by change, as a page: add --html compare.html", style="dim", markup=False)
    if page is not None:
        name = Path(options.run).resolve().name
        facts = {"run": str(options.run), "rows": options.data or "those the run held out"}
        _write(page, page_of(compared, f"{name}: base against tuned", facts), options.force)
        if not options.json:
            console.print(f"  All rows, sorted by change: {page}", style="dim", markup=False)
    return 0


def _tell(event: object) -> None:
    """Notes, where standard output is for JSON alone."""
    from tunesmith.events import Note

    if isinstance(event, Note):
        print(event.text, file=sys.stderr)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a count of at least 1")
    return int(text)


def _check_free(page: Path, force: bool) -> None:
    """Raises RunError if the page cannot be written there."""
    if page.is_dir():
        raise RunError(f"{page} is a folder.", "Name a file, such as compare.html.")
    if page.exists() and not force:
        raise RunError(f"{page} is there already.", "Give another name, or add --force to overwrite it.")
    if not page.parent.is_dir():
        raise RunError(f"There is no folder {page.parent}.", "Make it, or give another --html.")


def _write(page: Path, text: str, force: bool) -> None:
    try:
        with page.open("w" if force else "x", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError as error:
        raise RunError(f"{page} cannot be written: {error.strerror or error}.", "Give another --html.") from error
