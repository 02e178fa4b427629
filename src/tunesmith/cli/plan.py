"""`tunesmith plan MODEL DATA [run.yaml] [--settings]`: the plan alone; no weight is loaded."""

import argparse

from tunesmith.cli.settings import add_settings, read_settings


def run(arguments: list[str]) -> int:
    """Show what the run would take."""
    parser = argparse.ArgumentParser(
        prog="tunesmith plan",
        usage="tunesmith plan [MODEL] [DATA] [run.yaml] [--setting VALUE …]",
        description="What a run would take here.",
    )
    add_settings(parser)
    aliases: list[str] = []
    recipe = read_settings(parser, arguments, aliases.append)

    from tunesmith.api import prepare_run
    from tunesmith.cli.show import Show, console

    for line in aliases:
        console.print(f"  {line}", style="dim", markup=False)
    with Show() as show:
        prepare_run(recipe, show)
    return 0
