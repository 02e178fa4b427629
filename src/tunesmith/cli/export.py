"""`tunesmith export RUN OUT.gguf`: a file for llama.cpp and what is built on it."""

import argparse
from pathlib import Path

from tunesmith.cli.parser import Parser, named

KINDS = {
    "f16": "the merged model, 16 bits a weight",
    "q8_0": "the merged model, 8.5 bits a weight",
    "f32": "the merged model, exact",
    "adapter": "the adapter alone, to load beside a GGUF file of its base",
    "base": "the base alone, as training saw it, in 16 bits: what the adapter fits best",
}


def run(arguments: list[str]) -> int:
    """Write the file, and say how to use it."""
    options = _parser().parse_args(arguments)

    from tunesmith.places import check_adapter, check_gguf_name
    from tunesmith.training.workshop import check_free

    check_adapter(Path(options.run))
    check_gguf_name(options.out)
    check_free(Path(options.out))

    from rich.markup import escape

    from tunesmith.cli.show import Show, console
    from tunesmith.export.hub_card import shipped_of
    from tunesmith.export.runtimes import compatibility
    from tunesmith.ship import export_gguf

    out = Path(options.out)
    with Show() as show:
        size = export_gguf(Path(options.run), out, options.type, show, ollama=options.ollama)
    console.print(f"[bold green]Done.[/] {escape(str(out))}: {KINDS[options.type]}, {size / 1e6:,.0f} MB")
    console.print(f"The adapter itself: {escape(compatibility(shipped_of(Path(options.run), options.run)))}", style="dim")
    if options.ollama:
        console.print(f"Beside it: {escape(str(out.with_name('Modelfile')))}")
        console.print(f"Next: [bold]ollama create NAME -f {escape(str(out.with_name('Modelfile')))}[/]")
    elif options.type == "adapter":
        console.print(
            f"Next: [bold]llama-cli -m BASE.gguf --lora {escape(str(out))}[/] (--type base writes the base that fits best)"
        )
    else:
        console.print(f"Next: [bold]llama-cli -m {escape(str(out))}[/], or --ollama for a Modelfile")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="tunesmith export", description="Write a GGUF file of a run for llama.cpp, Ollama and others.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="types:\n" + "\n".join(f"  {kind:8} {what}" for kind, what in KINDS.items()),
    )  # fmt: skip
    parser.add_argument("run", type=named, metavar="RUN", help="the run's folder, or any folder with a LoRA adapter")
    parser.add_argument("out", type=named, metavar="OUT.gguf", help="the file to write, with a name that ends in .gguf")
    parser.add_argument("--type", choices=tuple(KINDS), default="f16", help="what to write [f16]")
    parser.add_argument("--ollama", action="store_true", help="write a Modelfile beside it")
    return parser
