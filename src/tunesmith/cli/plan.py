"""`tunesmith plan MODEL DATA [run.yaml] [--settings]`: the plan alone, from a model's config and tokenizer; no weight is loaded."""

from tunesmith.cli.settings import parse


def run(arguments: list[str]) -> int:
    """Show what the run would take. The exit code is 1 if nothing is sure to fit."""
    about = "What a run would take here; or on a GPU elsewhere: --device cuda --memory 24GB. Exit code 1: nothing is sure to fit."
    recipe, aliases = parse("plan", about, arguments, begins=False)

    from tunesmith.cli.show import Show, console, ways_table
    from tunesmith.job import prepare_run

    with Show(aliases) as show:
        job, _ = prepare_run(recipe, show, only_plan=True)
    console.print(ways_table(job))
    return 0 if job.plan.fits else 1
