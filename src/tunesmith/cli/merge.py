"""`tunesmith merge RUN OUT`: adapter and base as one model that anything can load."""

from pathlib import Path

from tunesmith.cli.parser import Parser

DTYPES = ("bfloat16", "float16", "float32")


def run(arguments: list[str]) -> int:
    """Merge, compare with the live adapter, and say how to use what was made."""
    parser = Parser(
        prog="tunesmith merge", description="Write a run's base with its adapter merged in, as a plain transformers model."
    )
    parser.add_argument("run", help="the run's folder, or any folder with a LoRA adapter")
    parser.add_argument("out", help="the folder to make")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="type of the weights [bfloat16]")
    options = parser.parse_args(arguments)

    from rich.markup import escape
    from rich.table import Table

    from tunesmith.cli.show import Show, console
    from tunesmith.ship import merge

    with Show() as show:
        agreement, limit = merge(Path(options.run), Path(options.out), options.dtype, show)
    table = Table(show_header=False, box=None)
    table.add_row("merged into", escape(options.out))
    spread = f"{agreement.kl:.1e} nats a token, {agreement.worst_kl:.1e} at worst (mean allowed: {limit:.0e})"
    table.add_row("divergence from the live adapter", spread)
    table.add_row("same likeliest token", f"{agreement.top1:.1%} of {agreement.tokens} positions")
    console.print(table)
    console.print(f"Next: [bold]vllm serve {escape(options.out)}[/], or AutoModelForCausalLM.from_pretrained(…) in Python")
    return 0
