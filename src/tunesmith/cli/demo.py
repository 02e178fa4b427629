"""`tunesmith demo`: the whole job on the bundled model and data, with the proof on held-out rows."""

from tunesmith.cli.settings import parse

RECIPE = {"num_train_epochs": 0.9, "per_device_train_batch_size": 12, "learning_rate": 3e-3, "lora_dropout": 0.0}
"""What the demo sets; all else is default. Less than one pass over rows of one kind: a high rate, no dropout."""


def run(arguments: list[str]) -> int:
    """Train, then show what changed on every held-out row."""
    settings = [f"--{key}={value}" for key, value in RECIPE.items()]
    recipe, aliases = parse("demo", "Tune the bundled model to speak like Yoda.", [*settings, *arguments])

    from rich.markup import escape

    from tunesmith.api import run_recipe
    from tunesmith.cli.compare_terminal import show_comparison
    from tunesmith.cli.show import Show, console, next_commands

    console.print("[bold]tunesmith demo[/]: teaching a small chat model to speak like Yoda\n")
    with Show(aliases) as show:
        result = run_recipe(recipe, show, samples=10_000)
    if result.stopped:
        return 128 + result.stopped
    compared = result.comparison
    if compared and compared.rows:
        show_comparison(compared, console)
        count, (before, after) = len(compared.rows), compared.right
        console.print(
            f"\nRight on held-out rows, interjections aside: "
            f"before [bold]{before} of {count} ({before / count:.0%})[/], "
            f"after [bold green]{after} of {count} ({after / count:.0%})[/]"
        )
    question = "The Force is strong in you!"
    console.print(f"{question} → [bold green]{escape(result.generate(question))}[/]")
    console.print(f"The adapter is in [bold]{escape(str(result.folder))}[/]")
    console.print(next_commands(result.folder, question), soft_wrap=True)
    return 0
