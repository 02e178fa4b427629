"""`tunesmith train MODEL DATA [run.yaml] [--settings]`."""

from tunesmith.cli.settings import parse


def run(arguments: list[str]) -> int:
    """Train, show, save."""
    recipe, aliases = parse("train", "Tune a model on your data.", arguments)

    from rich.markup import escape

    from tunesmith.api import run_recipe
    from tunesmith.cli.show import Show, change_table, console, next_commands

    with Show(aliases) as show:
        result = run_recipe(recipe, show)
    if result.changes:
        console.print(change_table(result.changes))
    console.print(f"\n[bold green]Done.[/] The adapter is in [bold]{escape(str(result.folder))}[/]")
    console.print(next_commands(result.folder))
    return 0
