"""`tunesmith train MODEL DATA [run.yaml] [--settings]`."""

from tunesmith.cli.settings import parse


def run(arguments: list[str]) -> int:
    """Train, show, save."""
    recipe, aliases = parse("train", "Tune a model on your data.", arguments)

    from rich.markup import escape

    from tunesmith.api import run_recipe
    from tunesmith.cli.compare_terminal import show_comparison
    from tunesmith.cli.show import Show, console, next_commands

    with Show(aliases) as show:
        result = run_recipe(recipe, show)
    if result.stopped:
        return 128 + result.stopped
    if result.comparison:
        show_comparison(result.comparison, console)
    console.print(f"\n[bold green]Done.[/] The adapter is in [bold]{escape(str(result.folder))}[/]")
    console.print(next_commands(result.folder, show.question), soft_wrap=True)
    return 0
