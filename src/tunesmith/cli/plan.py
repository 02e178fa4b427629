"""`tunesmith plan MODEL DATA [run.yaml] [--settings]`: the plan alone; no weight is loaded."""

from tunesmith.cli.settings import parse


def run(arguments: list[str]) -> int:
    """Show what the run would take."""
    recipe, aliases = parse("plan", "What a run would take here.", arguments, begins=False)

    from tunesmith.cli.show import Show, console, ways_table
    from tunesmith.job import prepare_run

    with Show(aliases) as show:
        job, _ = prepare_run(recipe, show, begins=False)
    console.print(ways_table(job))
    return 0
