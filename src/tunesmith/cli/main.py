"""The `tunesmith` command: finds the subcommand, and turns errors into one paragraph and exit code 2."""

import os
import sys
import warnings
from errno import ENAMETOOLONG
from importlib import import_module

from tunesmith.base.disk import FULL
from tunesmith.cli.parser import Parser
from tunesmith.errors import MachineError, RecipeError, TunesmithError, nearest
from tunesmith.hub_client import check_environment
from tunesmith.training.interrupt import exit_code, terminable

COMMANDS = {
    "demo": "tune the bundled model on the bundled data and show before and after",
    "train": "tune a model on your data",
    "resume": "go on with a run that was stopped",
    "preview": "the tokens that would be trained, and what is odd about the data",
    "plan": "what a run would take here: memory, time, and the way it would run",
    "chat": "talk to a run",
    "compare": "base against tuned: a verdict, and what was forgotten",
    "serve": "OpenAI-style HTTP over a run, on this machine",
    "merge": "a run's base and adapter as one plain model",
    "export": "a run as a GGUF file for llama.cpp and Ollama",
    "push": "a run on the Hugging Face hub",
    "login": "log in to the hub",
    "doctor": "what this machine has, and what is missing",
}
"""Commands and their one line of help; each is a module of this package with a ``run(arguments)``."""

QUIET = {
    "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_VERBOSITY": "error",
    "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false",
}  # fmt: skip
"""For libraries, whose own bars and advice would run through ours."""


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code (0 done, 2 a mistake to mend, 130 interrupted, 143 terminated)."""
    arguments = sys.argv[1:] if argv is None else argv
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    os.environ.update({**QUIET, **os.environ})
    if not debug:
        warnings.simplefilter("ignore")  # libraries warn about one another; what matters to the user, we say ourselves
    try:
        with terminable():
            code = _dispatch(arguments)
            print(end="", flush=True)  # a full disk is told now: later it would be a traceback
            return code
    except TunesmithError as error:
        if debug:
            raise
        _complain(error)
        return 2
    except KeyboardInterrupt as stop:
        print("\nStopped.", file=sys.stderr)
        return exit_code(stop)
    except BrokenPipeError:  # `tunesmith … | head`
        _drop_output()
        return 0
    except OSError as error:
        if error.errno == ENAMETOOLONG and not debug:
            _complain(RecipeError(f"No name is as long as {str(error.filename)[:60]}….", "Check what you typed."))
            return 2
        if debug or error.errno not in FULL or error.filename is not None:
            raise
        _drop_output()
        _complain(MachineError(f"The output could not be written: {error.strerror}.", "Free some space, or send it elsewhere."))
        return 2
    except (MemoryError, RuntimeError) as error:
        from tunesmith.training.guard import ran_out_of_memory  # imports torch, which is there already if this is so

        if debug or not ran_out_of_memory(error):
            raise
        _complain(MachineError("The memory of this machine ran out.", "Ask for less at once, or end what else uses it."))
        return 2


def _drop_output() -> None:
    """Let what is not written yet go nowhere: it would be tried once more when the process ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(arguments: list[str]) -> int:
    parser = Parser(
        prog="tunesmith",
        description="Fine-tune a chat model on your own examples, on the machine you have.",
        epilog="`tunesmith COMMAND --help` tells more; --debug shows tracebacks.",
    )
    from tunesmith import __version__

    parser.add_argument("--version", action="version", version=f"tunesmith {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, help_line in COMMANDS.items():
        commands.add_parser(name, help=help_line, add_help=False)
    if not arguments or arguments[0] not in COMMANDS:
        if arguments and not arguments[0].startswith("-"):
            raise RecipeError(f"There is no command {arguments[0]!r}{nearest(arguments[0], COMMANDS)}.", "Try `tunesmith --help`.")
        parser.parse_args(arguments)
        parser.print_help()
        return 0
    if not {"-h", "--help"} & set(arguments):
        check_environment()
    return import_module(f"tunesmith.cli.{arguments[0]}").run(arguments[1:])


def _complain(error: TunesmithError) -> None:
    from rich.console import Console
    from rich.text import Text

    paragraph = Text.assemble(("error: ", "bold red"), error.what, " ", (error.fix, "bold"))
    Console(stderr=True, soft_wrap=True).print(paragraph)


if __name__ == "__main__":
    sys.exit(main())
