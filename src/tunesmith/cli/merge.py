"""`tunesmith merge RUN OUT`: adapter and base as one model that anything can load."""

from pathlib import Path

from tunesmith.cli.parser import Parser, named

DTYPES = ("bfloat16", "float16", "float32")


def run(arguments: list[str]) -> int:
    """Merge, compare with the live adapter, and say how to use what was made."""
    parser = Parser(
        prog="tunesmith merge", description="Write a run's base with its adapter merged in, as a plain transformers model."
    )
    parser.add_argument("run", type=named, metavar="RUN", help="the run's folder, or any folder with a LoRA adapter")
    parser.add_argument("out", type=named, metavar="OUT", help="the folder to make")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="type of the weights [bfloat16]")
    options = parser.parse_args(arguments)

    from tunesmith.places import check_adapter
    from tunesmith.training.workshop import check_free

    check_adapter(Path(options.run))
    check_free(Path(options.out), folder=True)

    from rich.markup import escape
    from rich.table import Table

    from tunesmith.cli.show import Show, console
    from tunesmith.ship import merge

    with Show() as show:
        agreement, limit = merge(Path(options.run), Path(options.out), options.dtype, show)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("merged into", escape(options.out))
    table.add_row("same next token as the adapter", f"{agreement.top1:.1%} of {agreement.tokens} places")
    spread = f"{agreement.kl:.2g} nats a token on average, {limit:g} allowed; {agreement.worst_kl:.2g} at worst"
    table.add_row("divergence", spread)
    console.print(table)
    console.print(f"Next: [bold]vllm serve {escape(options.out)}[/], or AutoModelForCausalLM.from_pretrained(…) in Python")
    return 0
