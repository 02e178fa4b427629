"""`tunesmith compare RUN [DATA]`: base against tuned, row by row and in figures, and what tuning cost."""

import argparse
import json
import sys
from contextlib import nullcontext
from os.path import expanduser
from pathlib import Path

from tunesmith.cli.counts import count
from tunesmith.cli.page_file import check_page, write_page
from tunesmith.cli.parser import Parser, named


def run(arguments: list[str]) -> int:
    """Compare, show, and write the page if one is asked for."""
    options = _parser().parse_args(arguments)
    page = Path(expanduser(options.html)) if options.html else None
    if page is not None:
        check_page(page, options.force, "compare.html")

    from tunesmith.data.sources import check_name
    from tunesmith.places import check_adapter, check_held_out

    check_adapter(Path(options.run))
    if options.data is None:
        check_held_out(Path(options.run))
    else:
        check_name(options.data)

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
        write_page(page, page_of(compared, f"{name}: base against tuned", facts), options.force)
        if not options.json:
            console.print(f"  All rows, sorted by change: {page}", style="dim", markup=False)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="tunesmith compare",
        description="Base against tuned on rows the run held out, or on yours, with a verdict; and what tuning cost it of facts, "
        "arithmetic, JSON, instructions and general text. The rules are in docs/judge.md.",
    )
    parser.add_argument("run", type=named, metavar="RUN", help="the run's folder, or any folder with a LoRA adapter")
    parser.add_argument(
        "data", type=named, nargs="?", metavar="DATA", help="rows to compare on; the run's own held-out rows by default"
    )
    parser.add_argument("--rows", type=count(1), default=200, metavar="N", help="look at so many rows at most, spread out [200]")
    parser.add_argument("--no-suites", action="store_true", help="rows and general text only: quicker")
    parser.add_argument("--html", metavar="FILE", help="write all rows as a page")
    parser.add_argument("--force", action="store_true", help="overwrite that page")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    return parser


def _tell(event: object) -> None:
    """Notes, where standard output is for JSON alone."""
    from tunesmith.events import Note

    if isinstance(event, Note):
        print(event.text, file=sys.stderr)
