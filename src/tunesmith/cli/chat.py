"""`tunesmith chat RUN [--prompt TEXT]`: talk to a run, or ask one thing and exit."""

import argparse
import sys
from pathlib import Path


def run(arguments: list[str]) -> int:
    """Answer the prompt and exit, or read questions until the end of input."""
    parser = argparse.ArgumentParser(prog="tunesmith chat", description="Talk to a run, or to any folder with a LoRA adapter.")
    parser.add_argument("run", help="the run's folder")
    parser.add_argument("--prompt", help="ask this, print the answer, exit")
    parser.add_argument("--system", help="system prompt")
    parser.add_argument("--base", action="store_true", help="answer as the untuned model")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="longest answer [256]")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 always gives the likeliest answer [0]")
    parser.add_argument("--top-p", type=float, default=1.0, help="sample from this share of probability [1]")
    options = parser.parse_args(arguments)

    from tunesmith.api import load
    from tunesmith.errors import DataError

    tuned = load(Path(options.run))
    sampling = {"max_new_tokens": options.max_new_tokens, "temperature": options.temperature, "top_p": options.top_p}
    messages = [{"role": "system", "content": options.system}] if options.system else []
    if options.prompt is not None:
        print(_plain(tuned.generate([*messages, _user(options.prompt)], base=options.base, **sampling)))
        return 0
    interactive = sys.stdin.isatty()
    while True:
        try:
            text = input("> " if interactive else "")
        except EOFError:
            return 0
        if not text.strip():
            continue
        messages.append(_user(text))
        try:
            answer = tuned.generate(messages, base=options.base, **sampling)
        except DataError as error:  # a control token in the text: say so and go on
            print(error, file=sys.stderr)
            messages.pop()
            continue
        messages.append({"role": "assistant", "content": answer})
        print(_plain(answer), flush=True)


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _plain(text: str) -> str:
    """The text without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)
