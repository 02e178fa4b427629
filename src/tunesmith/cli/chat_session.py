"""A talk with a model: commands, who answers, and what stays of it. Knows no terminal."""

import dataclasses
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from os.path import expanduser
from pathlib import Path

from tunesmith.cli.chat_answer import CONTEXT, INTERRUPTED, MAX_NEW_TOKENS, Answer
from tunesmith.cli.chat_talk import Turn, append_row, messages_of, row_of
from tunesmith.errors import DataError, RecipeError, nearest
from tunesmith.generate.engine import Sampling
from tunesmith.generate.session import Session

TUNED, BASE = "tuned", "base"
DEFAULT = Sampling(max_new_tokens=512)
COMMANDS = {
    "base": ("", "answer as the untuned model; again: as the tuned one"),
    "both": ("", "answer as both, side by side; the tuned answer stays in the talk; again: as before"),
    "retry": ("", "answer the last message anew"),
    "undo": ("", "take the last message and its answer back"),
    "new": ("", "begin another talk; system prompt and settings stay"),
    "system": ("TEXT", "set the system prompt; `none` for none; without TEXT: show it"),
    "set": ("NAME=VALUE …", "set max_new_tokens, temperature, top_p, top_k or seed; without: show them"),
    "save": ("FILE.jsonl", "append the talk to a file, as a row to train on"),
    "help": ("", "show this"),
    "quit": ("", "end; so does Ctrl-D"),
}
"""Commands, what follows them, and what they do."""
ALSO = {"exit": "quit", "bye": "quit", "clear": "new", "reset": "new", "?": "help"}


@dataclass(frozen=True)
class Told:
    """Something to tell the user."""

    text: str


@dataclass(frozen=True)
class Quit:
    """The user wants to leave."""


@dataclass(frozen=True)
class Asked:
    """A message whose answers are to be drawn with `pieces` and then kept with `Chat.keep`.

    answers: by who gives them. before: the turns it follows.
    """

    question: str
    answers: dict[str, Answer]
    before: tuple[Turn, ...] = ()

    def pieces(self) -> Generator[tuple[str, str], None, None]:
        """Who speaks and a piece of text, a token of each in turn."""
        streams = {who: iter(answer) for who, answer in self.answers.items()}
        while streams:
            for who in list(streams):
                piece = next(streams[who], None)
                if piece is None:
                    del streams[who]
                else:
                    yield who, piece


@dataclass
class Chat:
    """A talk. ``take`` a line of the user: it is a command, done at once, or a message to be answered.

    adapter: whether there is one; without it the base answers. who: those who answer, first the one whose answer stays.
    """

    session: Session
    sampling: Sampling = DEFAULT
    system: str | None = None
    adapter: bool = True
    who: tuple[str, ...] = ()
    turns: tuple[Turn, ...] = ()
    saved: dict[str, tuple[Turn, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.who = self.who or ((TUNED,) if self.adapter else (BASE,))

    def take(self, line: str) -> Told | Asked | Quit:
        """Do what a command says, or ask what a message says. ``//`` begins a message that begins with ``/``.

        Raises:
            TunesmithError: it cannot be done; the talk is as before.
        """
        text = line.strip()
        if text.startswith("//"):
            return self.ask(text[1:])
        if not text.startswith("/"):
            return self.ask(text)
        name, _, argument = text[1:].partition(" ") if " " in text.partition("\n")[0] else text[1:].partition("\n")
        name = ALSO.get(name, name)
        if name not in COMMANDS:
            raise RecipeError(
                f"There is no command /{name}{nearest(name, COMMANDS)}.", "/help shows all; to say it as a message, begin with //."
            )
        if argument.strip() and not COMMANDS[name][0]:
            raise RecipeError(f"/{name} takes nothing after it; there is {argument.strip()!r}.", f"Type /{name} alone.")
        command: Callable[[str], Told | Asked | Quit] = getattr(self, f"_{name}")
        return command(argument.strip())

    def ask(self, text: str, before: tuple[Turn, ...] | None = None) -> Asked:
        """The answers to a message, not begun yet. before: the turns it follows, all there are if not given.

        Raises:
            DataError: it is empty, not Unicode, or leaves no room for an answer. ModelError: the chat template refuses it.
        """
        if not text.strip():
            raise DataError("The message is empty.", "Type something.")
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise DataError("The message holds bytes that are not UTF-8.", "Type or send it as UTF-8.")
        before = self.turns if before is None else before
        messages = messages_of(self.system, before, text)
        return Asked(text, {who: Answer(self.session, messages, self.sampling, base=who == BASE) for who in self.who}, before)

    def keep(self, asked: Asked) -> str:
        """Put the message and its answer into the talk, and say how it ended. What was stopped before anything came of it is as
        if it had not been asked."""
        answer = next(iter(asked.answers.values()))
        stop, took = answer.stop, f"{answer.tokens:,} tokens, {answer.seconds:.1f} s"
        if stop == INTERRUPTED and answer.text == answer.opened:
            return "stopped before a word came; the talk is as before"
        self.turns = (*asked.before, Turn(asked.question, answer.text, stop not in (INTERRUPTED, MAX_NEW_TOKENS, CONTEXT)))
        if stop == INTERRUPTED:
            return f"stopped after {took}; what came stays in the talk: /retry answers anew, /undo takes it back"
        if stop == MAX_NEW_TOKENS:
            return f"cut at max_new_tokens, {took}: /set max_new_tokens={answer.longer} and /retry for more of it"
        if stop == CONTEXT:
            full = f"the talk fills all {self.session.context:,} tokens this model can see"
            return f"cut after {took}: {full}; /undo turns, or begin a /new talk"
        return took if answer.text.strip() else f"{took}: an empty answer"

    # ---- commands

    def _base(self, argument: str) -> Told:
        self._need_adapter("/base")
        self.who = (BASE,) if self.who == (TUNED,) else (TUNED,)
        return Told("The base model answers now, without the adapter." if self.who == (BASE,) else "The tuned model answers now.")

    def _both(self, argument: str) -> Told:
        self._need_adapter("/both")
        self.who = (TUNED,) if len(self.who) == 2 else (TUNED, BASE)
        return Told(
            "Both answer now; the tuned answer stays in the talk." if len(self.who) == 2 else "The tuned model answers now."
        )

    def _need_adapter(self, command: str) -> None:
        if not self.adapter:
            raise RecipeError(f"{command} needs a tuned model, and this is a base model alone.", "Open a run: tunesmith chat RUN")

    def _retry(self, argument: str) -> Asked:
        if not self.turns:
            raise DataError("There is nothing to answer anew: the talk is empty.", "Say something.")
        return self.ask(self.turns[-1].question, self.turns[:-1])

    def _undo(self, argument: str) -> Told:
        if not self.turns:
            raise DataError("There is nothing to take back: the talk is empty.", "Say something.")
        *rest, last = self.turns
        self.turns = tuple(rest)
        first = last.question.partition("\n")[0]
        return Told(f"Taken back: {first if len(first) < 70 else first[:68] + '…'} ({_count(self.turns, 'turn')} left)")

    def _new(self, argument: str) -> Told:
        self.turns = ()
        return Told("Another talk begins.")

    def _system(self, argument: str) -> Told:
        if argument:
            self.system = None if argument == "none" else argument
        return Told(f"System prompt: {self.system}" if self.system else "No system prompt, but what the chat template brings.")

    def _set(self, argument: str) -> Told:
        pairs = [word.partition("=") for word in argument.replace(",", " ").split()]
        if len(pairs) == 2 and not pairs[0][1] and not pairs[1][1]:
            pairs = [(pairs[0][0], "=", pairs[1][0])]  # /set temperature 0.7
        changed = {name: read_setting(name, value) for name, value in ((_name(n), v) for n, _, v in pairs)}
        self.sampling = dataclasses.replace(self.sampling, **changed)  # type: ignore[arg-type]
        return Told(
            ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(self.sampling).items()).replace("None", "none")
        )

    def _save(self, argument: str) -> Told:
        if not argument:
            raise RecipeError("/save needs the name of a file.", "Type, for example, /save talks.jsonl")
        path = Path(expanduser(argument))
        append_row(path, row_of(self.system, self.turns, self.session.renderer))
        cut = sum(not turn.whole for turn in self.turns)
        text = f"Saved {_count(self.turns, 'turn')} as a row of {path}"
        text += f"; {cut} cut or stopped, in it but not to be trained" if cut else ""
        before, self.saved[str(path.resolve())] = self.saved.get(str(path.resolve())), self.turns
        repeated = bool(before) and self.turns[: len(before or ())] == before
        return Told(text + ("; the file holds its beginning as a row of its own, from before" if repeated else ""))

    def _help(self, argument: str) -> Told:
        words = {f"/{name} {what}".rstrip(): does for name, (what, does) in COMMANDS.items()}
        width = max(map(len, words))
        lines = [f"{command:<{width}}  {does}" for command, does in words.items()]
        keys = "Enter sends; Alt-Enter or Ctrl-J begins a new line; Ctrl-C stops an answer; up brings earlier messages."
        return Told("\n".join([*lines, f"{'//…':<{width}}  say something that begins with /", keys]))

    def _quit(self, argument: str) -> Quit:
        return Quit()


def read_setting(name: str, value: str) -> int | float | None:
    """The value of a sampling setting. Raises RecipeError."""
    kinds = {f.name: float if f.name in ("temperature", "top_p") else int for f in dataclasses.fields(Sampling)}
    if name not in kinds:
        raise RecipeError(f"There is no setting {name!r}{nearest(name, kinds)}.", f"Set one of {', '.join(kinds)}.")
    if name == "seed" and value == "none":
        return None
    try:
        return kinds[name](value)
    except ValueError as error:
        what = "a number" if kinds[name] is float else "a whole number"
        raise RecipeError(f"{name} is {value!r}, not {what}.", f"Type, for example, /set {name}=1") from error


def _name(typed: str) -> str:
    name = typed.strip("-").replace("-", "_")
    return {"max_tokens": "max_new_tokens", "temp": "temperature"}.get(name, name)


def _count(things: Sequence[object], noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"
