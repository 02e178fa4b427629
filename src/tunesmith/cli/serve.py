"""`tunesmith serve RUN [--port 8000]`: OpenAI-style HTTP over a run, for trying it out and for small teams."""

import argparse
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.cli.counts import count
from tunesmith.cli.parser import Parser, named

if TYPE_CHECKING:
    from tunesmith.serve.service import Service

PRINTED = ("vllm", "llama.cpp", "ollama")


def run(arguments: list[str]) -> int:
    """Serve until stopped: exit code 0 after SIGTERM, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)

    from tunesmith.places import check_adapter
    from tunesmith.serve.extra import check_extra

    if not options.print:
        check_extra()
    check_adapter(Path(options.run))
    if options.print:
        from tunesmith.serve.elsewhere import commands

        print("\n".join(commands(options.run, options.print, options.port or 8000)))
    else:
        _serve(options)
    return 0


def _serve(options: argparse.Namespace) -> None:
    from tunesmith.serve.server import check_host, claim_port, read_key

    key = read_key(options.api_key_file)
    anywhere = check_host(options.host, key)

    from tunesmith.api import load
    from tunesmith.cli.show import console
    from tunesmith.serve.app import make_app
    from tunesmith.serve.elsewhere import model_names
    from tunesmith.serve.limits import Limits
    from tunesmith.serve.server import serve_app
    from tunesmith.serve.service import Service
    from tunesmith.training.interrupt import Terminated

    tuned = load(Path(options.run))
    limits = Limits(slots=options.slots, queue=options.queue)
    with claim_port(options.host, options.port) as claimed:
        console.print(f"  Loading {options.run}", style="dim", markup=False)
        service = Service(tuned.session, *model_names(tuned.folder), limits)
        _announce(service, options.host, claimed.getsockname()[1], key is not None, options.run)
        try:
            serve_app(make_app(service, key, anywhere), claimed, limits, service.worker.stop)
        except Terminated:
            console.print("Stopped.")
        finally:
            service.worker.close()  # after a second Ctrl-C it lives still, and a thread within torch aborts a Python that ends


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="tunesmith serve", description="Serve a run, and its base beside it, to OpenAI's clients. docs/serve.md says more."
    )
    parser.add_argument("run", type=named, metavar="RUN", help="the run's folder, or any folder with a LoRA adapter")
    parser.add_argument("--port", type=_port, default=8000, help="port to listen on; 0 for any that is free [8000]")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; beyond this machine only with a key [127.0.0.1]")
    parser.add_argument("--api-key-file", metavar="FILE", help="what clients must send; also from TUNESMITH_API_KEY")
    parser.add_argument("--slots", type=count(1, 1024), default=8, help="answers that grow at a time, of each model [8]")
    parser.add_argument("--queue", type=count(1, 1024), default=64, help="answers that may wait besides [64]")
    parser.add_argument("--print", choices=PRINTED, help="print the commands that serve the same run there, and exit")
    return parser


def _port(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (0 to 65535)")
    return int(text)


def _announce(service: "Service", host: str, port: int, has_key: bool, run: str) -> None:
    """Where it is, what can be asked for, and a first request to try."""
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    from tunesmith.cli.show import console

    tuned, base = service.names
    name = {"0.0.0.0": "localhost", "::": "localhost"}.get(host.strip("[]"), host)
    url = f"http://{f'[{name}]' if ':' in name else name}:{port}/v1"
    limits = service.limits
    rows = {
        "url": url + ("" if has_key else "   (this machine only)"),
        "models": f"{tuned} (tuned), {base} (its base)",
        "key": "required: Authorization: Bearer …" if has_key else "none; clients may send any",
        "at a time": f"{limits.slots} answers of each model, {limits.queue} waiting; "
        f"{service.context:,} tokens with the prompt, {limits.answer:,} an answer",
        "for more": f"tunesmith serve {shlex.quote(str(run))} --print vllm",
    }
    table = Table(show_header=False, box=None, pad_edge=False)
    for title, value in rows.items():
        table.add_row(Text(title, "cyan"), Text(value))
    console.print(Panel(table, title="Serving", title_align="left", border_style="green", expand=False))
    body = json.dumps({"model": tuned, "messages": [{"role": "user", "content": "The Force is strong in you!"}]})
    auth = ' -H "Authorization: Bearer $TUNESMITH_API_KEY"' if has_key else ""
    command = f"curl {url}/chat/completions -H 'Content-Type: application/json'{auth} -d {shlex.quote(body)}"
    console.print(Text(f"Try  {command}", "bold"), soft_wrap=True)
    console.print(Text("Ctrl-C stops it.", "dim"))
