"""`tunesmith train MODEL DATA [run.yaml] [--settings]`."""

import argparse

from tunesmith.cli.settings import add_settings, read_settings


def run(arguments: list[str]) -> int:
    """Train, show, save."""
    parser = argparse.ArgumentParser(
        prog="tunesmith train",
        usage="tunesmith train [MODEL] [DATA] [run.yaml] [--setting VALUE …]",
        description="Tune a model on your data.",
    )
    add_settings(parser)
    aliases: list[str] = []
    recipe = read_settings(parser, arguments, aliases.append)

    from tunesmith.api import run_recipe
    from tunesmith.cli.show import Show, change_table, console, next_commands

    for line in aliases:
        console.print(f"  {line}", style="dim", markup=False)
    with Show() as show:
        result = run_recipe(recipe, show)
    if result.changes:
        console.print(change_table(result.changes))
    console.print(f"\n[bold green]Done.[/] The adapter is in [bold]{result.folder}[/]")
    console.print(next_commands(result.folder))
    return 0
