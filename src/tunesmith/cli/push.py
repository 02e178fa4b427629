"""`tunesmith push RUN user/name`: a run, a merged model or a GGUF file on the hub."""

import argparse
from pathlib import Path

from tunesmith.cli.parser import Parser, named


def run(arguments: list[str]) -> int:
    """Push, or list what would go; say where it is and how it is loaded."""
    parser = Parser(
        prog="tunesmith push",
        description="Put a run on the hub, in one commit: adapter, tokenizer, template, settings, losses and a card. "
        "Private, unless you say --public. A folder of `tunesmith merge` and a .gguf file can be pushed too.",
        epilog="The token is the one of `tunesmith login`, or HF_TOKEN.",
    )
    parser.add_argument("run", type=named, metavar="RUN", help="the run's folder, a merged model's folder, or a .gguf file")
    parser.add_argument("repo", type=named, metavar="REPO", help="user/name or organisation/name on the hub")
    parser.add_argument("--public", action="store_true", help="let everybody see it, if it is made now")
    parser.add_argument("--base", metavar="ID", help="hub id of the base model, where the run was trained on a folder or a file")
    parser.add_argument("--facts-of", metavar="RUN", help="the run that a merged model or .gguf file came from, for its card")
    parser.add_argument("--dry-run", action="store_true", help="list what would go and what would stay; asks the hub nothing")
    options = parser.parse_args(arguments)

    from tunesmith.export.publish import prepare, publish

    place, facts_of = Path(options.run), Path(options.facts_of) if options.facts_of else None
    if options.dry_run:
        parcel = prepare(place, options.repo, base=options.base, facts_of=facts_of)
        _show(parcel, options.repo)
        return 2 if parcel.findings else 0

    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    told = lambda line: console.print(Text(f"  {line}", "dim"))  # noqa: E731
    pushed = publish(place, options.repo, public=options.public, base=options.base, facts_of=facts_of, told=told)
    seen = "private" if pushed.private else "public"
    done = "Done." if pushed.changed else "Nothing to do: it holds these very files."
    console.print(Text.assemble((done, "bold green"), f" {pushed.url} ({seen}, commit {pushed.commit[:10]})"))
    _show_uses(place, options, facts_of)
    return 0


def _show(parcel, repo: str) -> None:  # type: ignore[no-untyped-def]
    """The files that would go with their sizes, those that would stay with the reason, and what stands in the way."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from tunesmith.cli.visible import on_one_line

    console = Console(highlight=False, soft_wrap=True)
    goes = Table(title=f"Would go to {on_one_line(repo)}", title_justify="left", title_style="bold", show_header=False, box=None)
    for file in parcel.files:
        cleaned = (
            "written for the hub" if file.name == "README.md" else "local paths cut" if isinstance(file.content, bytes) else ""
        )
        goes.add_row(Text(on_one_line(file.name)), Text(f"{file.bytes:,} bytes"), Text(cleaned, "dim"))
    goes.columns[1].justify = "right"
    console.print(goes)
    if parcel.stays:
        stays = Table(title="Would stay", title_justify="left", title_style="bold", show_header=False, box=None)
        for name, why in sorted(parcel.stays.items()):
            stays.add_row(Text(on_one_line(name)), Text(why, "dim"))
        console.print(stays)
    for finding in parcel.findings:
        console.print(Text.assemble(("must not be published: ", "bold red"), on_one_line(str(finding))))


def _show_uses(place: Path, options: argparse.Namespace, facts_of: Path | None) -> None:
    """How it is loaded from the hub, in the runtimes that can."""
    from rich.console import Console
    from rich.text import Text

    from tunesmith.export.hub_card import uses_of

    console = Console(highlight=False, soft_wrap=True)
    for use in uses_of(place, options.repo, options.base, facts_of):
        console.print(Text.assemble(("\n" + use.name, "bold"), f": {use.why}" if use.why else ""))
        for line in use.lines:
            console.print(Text(f"  {line}", "cyan"))
