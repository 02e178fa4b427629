"""Answers on their way out: one as it comes, two side by side, or plain text for a pipe."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tunesmith.cli.chat_session import Asked
from tunesmith.cli.chat_text import Thoughts, shown

REDRAWN = 0.08
"""Seconds between drawings of two answers side by side."""

Stopped = Callable[[], bool]


def draw(asked: Asked, console: Console, stopped: Stopped) -> None:
    """Make the answers and draw them as they come, thoughts dimmed, until they end or the user has stopped them."""
    (_side_by_side if len(asked.answers) > 1 else _stream)(asked, console, stopped)


def _stream(asked: Asked, console: Console, stopped: Stopped) -> None:
    (answer,) = asked.answers.values()
    thoughts = Thoughts(bool(answer.opened))

    def put(parts: Iterator[tuple[str, bool]]) -> None:
        for text, thought in parts:
            console.print(Text(shown(text).expandtabs(4), "dim" if thought else ""), end="", soft_wrap=True)

    try:
        with closing(asked.pieces()) as pieces:
            for _, piece in pieces:
                put(thoughts.add(piece))
                if stopped():
                    break
        put(thoughts.close())
    finally:
        console.print()


def _side_by_side(asked: Asked, console: Console, stopped: Stopped) -> None:
    """While they come, the last lines that the terminal has room for; then all of both."""
    drawn = 0.0
    try:
        with Live(console=console, transient=True, auto_refresh=False) as live, closing(asked.pieces()) as pieces:
            for _ in pieces:
                if time.monotonic() - drawn > REDRAWN:
                    live.update(_columns(asked, console, console.height - 4), refresh=True)
                    drawn = time.monotonic()
                if stopped():
                    break
    finally:
        console.print(_columns(asked, console))


def _columns(asked: Asked, console: Console, most: int | None = None) -> Table:
    """The answers as columns. most: lines at the most, the last ones."""
    table = Table(box=None, padding=(0, 2, 0, 0), expand=True, header_style="bold")
    width = max(1, console.width // len(asked.answers) - 2)
    cells = []
    for who, answer in asked.answers.items():
        table.add_column(who, width=width, overflow="fold")
        text = Text()
        thoughts = Thoughts()
        for part, thought in [*thoughts.add(answer.text), *thoughts.close()]:
            text.append(shown(part).expandtabs(4), "dim" if thought else "")
        cells.append(text if most is None else Text("\n").join(text.wrap(console, width, overflow="fold")[-most:]))
    table.add_row(*cells)
    return table


def write(asked: Asked) -> None:
    """Make the answers and write them to standard output: one as it comes, two one after the other."""
    labels = len(asked.answers) > 1
    for _, piece in asked.pieces():
        if not labels:
            sys.stdout.write(shown(piece))
            sys.stdout.flush()
    for who, answer in asked.answers.items():
        if labels:
            sys.stdout.write(f"{who}: {shown(answer.text)}\n")
    print("" if labels else "\n", end="", flush=True)


@contextmanager
def quiet_keys() -> Iterator[None]:
    """Within this block what is typed is not echoed into the answer, and waits for the next message; Ctrl-C and Ctrl-Z work."""
    try:
        import termios

        before = termios.tcgetattr(sys.stdin)
    except (ImportError, OSError, ValueError):  # Windows, or no terminal
        yield
        return
    quiet = [*before[:6], list(before[6])]
    quiet[0] &= ~termios.ICRNL
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
