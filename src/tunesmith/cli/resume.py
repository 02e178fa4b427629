"""`tunesmith resume RUN [--allow-changed]`."""

from pathlib import Path

from tunesmith.cli.parser import Parser, named


def run(arguments: list[str]) -> int:
    """Go on where the run was stopped, and end as it would have ended."""
    parser = Parser(prog="tunesmith resume", description="Go on with a run that was stopped; it ends as if it had not been.")
    parser.add_argument("run", type=named, metavar="RUN", help="folder of the run, such as runs/smollm2-135m-yoda-1")
    parser.add_argument(
        "--allow-changed", action="store_true",
        help="go on although data, base, template or settings (run.yaml) are others now; resumes.jsonl will say which",
    )  # fmt: skip
    given = parser.parse_args(arguments)

    from tunesmith.places import check_run

    check_run(Path(given.run))

    from rich.markup import escape

    from tunesmith.api import resume
    from tunesmith.cli.compare_terminal import show_comparison
    from tunesmith.cli.show import Show, console, next_commands

    with Show() as show:
        result = resume(Path(given.run), allow_changed=given.allow_changed, watch=show)
    if result.stopped:
        return 128 + result.stopped
    if result.comparison:
        show_comparison(result.comparison, console)
    console.print(f"\n[bold green]Done.[/] The adapter is in [bold]{escape(str(result.folder))}[/]")
    console.print(next_commands(result.folder, show.question), soft_wrap=True)
    return 0
