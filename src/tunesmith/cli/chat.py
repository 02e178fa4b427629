"""`tunesmith chat RUN [--prompt TEXT] [--json]`: talk to a run, an adapter's folder or a base model; or ask and exit."""

import argparse
import io
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tunesmith.cli.counts import count, number
from tunesmith.cli.parser import Parser, named
from tunesmith.errors import DataError, RecipeError, TunesmithError

if TYPE_CHECKING:
    from tunesmith.cli.chat_model import Partner
    from tunesmith.cli.chat_session import Asked, Chat

BASE_SETTINGS = ("chat_template", "load_in_4bit", "dtype", "device")


def run(arguments: list[str]) -> int:
    """Answer ``--prompt`` and exit; or talk, on a terminal or line by line through a pipe."""
    options = _parse(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    from tunesmith.cli.chat_model import find_partner, open_partner

    settings = {name: value for name in BASE_SETTINGS if (value := getattr(options, name)) is not None}
    found = find_partner(options.model, settings)

    from tunesmith.cli.chat_session import BASE, TUNED, Chat
    from tunesmith.generate.engine import Sampling

    sampling = Sampling(options.max_new_tokens, options.temperature, options.top_p, options.top_k, options.seed)
    partner = open_partner(found, _progress)
    if not partner.adapter and (options.base or options.both):
        raise RecipeError(f"{options.model} is a base model: it has no adapter to leave out.", "Leave --base and --both out.")
    who = (TUNED, BASE) if options.both else (BASE,) if options.base else ()
    chat = Chat(partner.session, sampling, options.system, partner.adapter, who)
    if options.prompt is not None:
        _one_shot(chat, _stdin() if options.prompt == "-" else options.prompt, options.json)
        return 0
    if options.json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return _piped(chat, options.json)
    _talk(chat, partner)
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="tunesmith chat", description="Talk to a run, to any folder with a LoRA adapter, or to a base model.",
        epilog="On a terminal /help shows the commands. Through a pipe, every line is a message or command of one talk.",
    )  # fmt: skip
    parser.add_argument(
        "model", type=named, metavar="RUN", help="folder of a run or adapter; or a base model: hub id, folder, .gguf, smollm2-135m"
    )
    parser.add_argument("--prompt", metavar="TEXT", help="ask this, print the answer, exit; - takes all of standard input")
    parser.add_argument("--json", action="store_true", help="one JSON object a message: messages, answer, stop, tokens, seconds")
    parser.add_argument("--system", metavar="TEXT", help="system prompt")
    who = parser.add_mutually_exclusive_group()
    who.add_argument("--base", action="store_true", help="answer as the untuned model")
    who.add_argument("--both", action="store_true", help="answer as both")
    parser.add_argument("--max-new-tokens", type=count(1), default=512, metavar="N", help="longest answer [512]")
    parser.add_argument("--temperature", type=number, default=0.0, metavar="T", help="0 always gives the likeliest answer [0]")
    parser.add_argument("--top-p", type=number, default=1.0, metavar="P", help="sample from this share of probability [1]")
    parser.add_argument("--top-k", type=count(), default=0, metavar="K", help="sample from so many tokens, 0 for all [0]")
    parser.add_argument("--seed", type=count(), metavar="N", help="of sampling; the same seed gives the same answer")
    base = parser.add_argument_group("for base models; a run is opened as it was trained")
    base.add_argument("--chat-template", metavar="NAME", help="a template's name or file, for models without one")
    base.add_argument("--load-in-4bit", metavar="BOOL", help="in NF4, as it would be trained [true]")
    base.add_argument("--dtype", help="to compute in: auto, float32, bfloat16, float16 [auto]")
    base.add_argument("--device", help="auto, cpu, cuda [auto]")
    return parser.parse_args(arguments)


def _talk(chat: "Chat", partner: "Partner") -> None:
    from rich.console import Console
    from rich.text import Text

    from tunesmith.base.catalog import cache_dir
    from tunesmith.cli.chat_editor import Editor
    from tunesmith.cli.chat_session import COMMANDS
    from tunesmith.cli.chat_terminal import Terminal
    from tunesmith.cli.chat_text import shown

    console = Console(highlight=False)
    begun = Text.assemble("Talking to ", (shown(partner.name), "bold"), (". /help shows the commands, Ctrl-D ends.", ""))
    console.print(begun, soft_wrap=True)
    Terminal(chat, Editor(cache_dir() / "chat_history", list(COMMANDS)), console).talk()


def _one_shot(chat: "Chat", text: str, as_json: bool) -> None:
    asked = chat.ask(text)
    if as_json:
        print(json.dumps(_record(asked)))
    elif sys.stdout.isatty():
        from rich.console import Console

        from tunesmith.cli.chat_drawing import draw

        draw(asked, Console(highlight=False), lambda: False)
    else:
        from tunesmith.cli.chat_drawing import write

        write(asked)
    if not as_json:
        _tell_cut(asked)


def _tell_cut(asked: "Asked") -> None:
    """Say which answers did not come to their end: their text does not show it."""
    from tunesmith.cli.chat_answer import CONTEXT, MAX_NEW_TOKENS

    for who, answer in asked.answers.items():
        cut = f"{who}: cut" if len(asked.answers) > 1 else "cut"
        if answer.stop == MAX_NEW_TOKENS:
            _note(f"{cut} after {answer.tokens:,} tokens: --max-new-tokens {answer.longer} for more of it")
        elif answer.stop == CONTEXT:
            _note(f"{cut} after {answer.tokens:,} tokens: the talk fills all {answer.session.context:,} this model can see")


def _piped(chat: "Chat", as_json: bool) -> int:
    """Every line a message or command of one talk; those that cannot be answered are told, and make the exit code 2."""
    from tunesmith.cli.chat_drawing import write
    from tunesmith.cli.chat_session import Asked, Quit, Told

    code = 0
    for line in _lines():
        try:
            match chat.take(line):
                case Quit():
                    break
                case Told(text):
                    _note(text)
                case Asked() as asked:
                    print(json.dumps(_record(asked)), flush=True) if as_json else write(asked)
                    told = chat.keep(asked)
                    if not chat.turns[-1].whole:
                        _note(told)
        except TunesmithError as error:
            code = 2
            _note(f"error: {error}")
            if as_json:
                print(json.dumps({"error": str(error)}), flush=True)
    return code


def _record(asked: "Asked") -> dict[str, Any]:
    """The answers, made here, as an object: with two, the tuned one's, and the base's under ``base``."""
    for _ in asked.pieces():
        pass
    first, *others = asked.answers.items()
    return {"messages": first[1].messages, **first[1].record(), **{who: answer.record() for who, answer in others}}


def _lines() -> Iterator[str]:
    """The lines of standard input that are not blank. Raises DataError where one is not UTF-8."""
    for place, line in enumerate(getattr(sys.stdin, "buffer", sys.stdin), 1):
        text = _decoded(line, f"Line {place} of standard input")
        if text.strip():
            yield text


def _stdin() -> str:
    return _decoded(getattr(sys.stdin, "buffer", sys.stdin).read(), "Standard input")


def _decoded(content: bytes | str, where: str) -> str:
    if isinstance(content, str):
        return content
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8: byte {error.start + 1} is {content[error.start]:#04x}.", "Send UTF-8.") from error


def _note(text: str) -> None:
    from tunesmith.cli.chat_text import shown

    print(f"  {shown(text)}", file=sys.stderr, flush=True)


def _progress(text: str) -> None:
    """What is being waited for, to those who wait: in a log or a pipe an error is the first thing that stands there."""
    if sys.stderr.isatty():
        _note(text)
