"""`tunesmith plan MODEL DATA [run.yaml] [--settings]`: the plan alone; no weight is loaded."""

from tunesmith.cli.settings import parse


def run(arguments: list[str]) -> int:
    """Show what the run would take."""
    recipe, aliases = parse("plan", "What a run would take here.", arguments)

    from tunesmith.api import prepare_run
    from tunesmith.cli.show import Show

    with Show(aliases) as show:
        prepare_run(recipe, show)
    return 0
