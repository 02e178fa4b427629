"""A chat template's text without running the template for every row.

A template does the same for most conversations of one shape (the same roles in the same order): it copies the contents
between fixed texts, perhaps stripped. So it is run once, over contents that remember what is done to them, and gives a trace:
fixed texts, places for contents, and the questions the template asked about them ("does it contain </think>?") with the
answers it got. Other conversations of that shape for which all answers are the same have their text put together from the
trace. A template that does anything else with a content (splits it, measures it, writes it as JSON) has no trace.

The plain twin is `render.render_text`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import Any, NoReturn

from tunesmith.data.sandbox import Sandbox, budget

Part = str | tuple[int, Callable[[str], str]] | tuple["Parts", Callable[[str], str]]
"""Fixed text; or a content by its number, or a text made of parts, and what is done to it."""
Parts = tuple[Part, ...]

READ_UNSEEN = ("float", "int", "tojson", "wordcount")
"""Filters that read a text's characters without asking it."""
POISON = "\ue000"
"""What a content looks like to code that reads it unseen. No trace is kept whose text holds it."""


class Untraceable(Exception):  # noqa: N818 (not an error: the plain way is taken)
    """The template does something with a content that a trace cannot follow."""


@dataclass(frozen=True)
class Strip:
    """Strips a text. how: strip, lstrip or rstrip. characters: that go, None for space."""

    how: str
    characters: str | None

    def __call__(self, text: str) -> str:
        stripped: str = getattr(text, self.how)(self.characters)
        return stripped


def spell(parts: Parts, contents: Sequence[str]) -> str:
    """The text that parts make of these contents."""
    return "".join([part if isinstance(part, str) else part[1](_inner(part[0], contents)) for part in parts])


def _inner(what: "int | Parts", contents: Sequence[str]) -> str:
    return contents[what] if isinstance(what, int) else spell(what, contents)


@dataclass(frozen=True)
class Question:
    """parts: the text asked about. ask: the question. answer: what it was."""

    parts: Parts
    ask: Callable[[str], bool]
    answer: bool


@dataclass(frozen=True)
class Trace:
    """parts: of the text. questions: that were asked on the way."""

    parts: Parts
    questions: tuple[Question, ...]

    def text(self, contents: Sequence[str]) -> str | None:
        """The text for these contents, None if the template would have gone another way."""
        return self.spelled(contents) if self.holds(contents) else None

    def holds(self, contents: Sequence[str]) -> bool:
        """Whether the template would go this way."""
        return not self.questions or all(one.ask(spell(one.parts, contents)) == one.answer for one in self.questions)

    def spelled(self, contents: Sequence[str]) -> str:
        """The text for contents for which the trace holds."""
        pieces = self._fixed.copy()
        for place, what, change in self._slots:
            content = _inner(what, contents)
            pieces[place] = content if change is _same else change(content)
        return "".join(pieces)

    @cached_property
    def _fixed(self) -> list[str]:
        return [part if isinstance(part, str) else "" for part in self.parts]

    @cached_property
    def _slots(self) -> list[tuple[int, "int | Parts", Callable[[str], str]]]:
        return [(place, part[0], part[1]) for place, part in enumerate(self.parts) if not isinstance(part, str)]


class _Traced(str):
    """A text that depends on contents. Its own characters are poison; what it is made of stands in ``parts``."""

    parts: Parts
    contents: Sequence[str]
    questions: list[Question]

    @staticmethod
    def of(parts: Parts, contents: Sequence[str], questions: list[Question]) -> "_Traced":
        traced = _Traced(POISON)
        traced.parts, traced.contents, traced.questions = parts, contents, questions
        return traced

    def _with(self, parts: Parts) -> "_Traced":
        return _Traced.of(parts, self.contents, self.questions)

    def _changed(self, change: Callable[[str], str]) -> "_Traced":
        (part, *others) = self.parts
        if not others and not isinstance(part, str) and part[1] is _same:
            return self._with(((part[0], change),))  # type: ignore[arg-type]
        return self._with(((self.parts, change),))

    def _asked(self, ask: Callable[[str], bool]) -> bool:
        answer = ask(spell(self.parts, self.contents))
        self.questions.append(Question(self.parts, ask, answer))
        return answer

    def __str__(self) -> str:
        return self

    def __add__(self, other: str) -> "_Traced":
        return self._with(self.parts + _parts(other))

    def __radd__(self, other: str) -> "_Traced":
        return self._with(_parts(other) + self.parts)

    def strip(self, characters: str | None = None, /) -> "_Traced":
        return self._changed(Strip("strip", _plain(characters)))

    def lstrip(self, characters: str | None = None, /) -> "_Traced":
        return self._changed(Strip("lstrip", _plain(characters)))

    def rstrip(self, characters: str | None = None, /) -> "_Traced":
        return self._changed(Strip("rstrip", _plain(characters)))

    def __contains__(self, other: object) -> bool:
        return self._asked(lambda text: _plain(other) in text)

    def startswith(self, prefix: Any, /) -> bool:  # type: ignore[override]
        return self._asked(lambda text: text.startswith(_plain(prefix)))

    def endswith(self, suffix: Any, /) -> bool:  # type: ignore[override]
        return self._asked(lambda text: text.endswith(_plain(suffix)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and self._asked(lambda text: text == _plain(other))

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __bool__(self) -> bool:
        return self._asked(bool)

    def __iter__(self) -> Any:
        """`is iterable` asks for an iterator and does not use it."""
        return map(_untraceable, [0])


def _same(text: str) -> str:
    return text


def _plain(value: Any) -> Any:
    """A value that may be compared with a text whose contents vary: one that depends on contents may not."""
    return _untraceable() if isinstance(value, _Traced) else value


def _parts(text: str) -> Parts:
    return text.parts if isinstance(text, _Traced) else (text,)


def _untraceable(*_: Any, **__: Any) -> NoReturn:
    raise Untraceable


_FOLLOWED = {*vars(_Traced), *vars(object)} - {"__hash__", "__format__", "__lt__", "__le__", "__gt__", "__ge__"}
for _name in {*dir(str)} - _FOLLOWED:
    setattr(_Traced, _name, _untraceable)


def _join(pieces: Iterable[Any]) -> str:
    """What a template wrote, in one."""
    parts: list[Part] = []
    owner: _Traced | None = None
    for piece in map(str, pieces):
        budget().pay(str.__len__(piece))
        parts.extend(_parts(piece))
        owner = piece if isinstance(piece, _Traced) else owner
    if owner is not None:
        return owner._with(tuple(parts))
    return "".join(part for part in parts if isinstance(part, str))


class Tracer:
    """Traces one template. variables: what else it reads, such as bos_token.

    Raises:
        Untraceable: it may search strings for contents. jinja2.TemplateError: it needs what only transformers adds to jinja.
    """

    def __init__(self, template: str, variables: dict[str, Any]) -> None:
        environment = _environment()
        _check_searches(template, environment)
        self.template, self.variables = environment.template(template), variables

    def trace(self, roles: Sequence[str], contents: Sequence[str], add_generation_prompt: bool) -> Trace:
        """The trace of a conversation.

        Raises:
            Untraceable: there is none. jinja2.TemplateError: the template refuses the conversation.
        """
        questions: list[Question] = []
        budget().open(sum(map(len, contents)))
        texts = [_Traced.of(((i, _same),), contents, questions) for i in range(len(contents))]
        messages = [{"role": role, "content": text} for role, text in zip(roles, texts)]
        variables = {**self.variables, "add_generation_prompt": add_generation_prompt, "messages": messages}
        written = self.template.render(**variables, tools=None, documents=None)
        parts = _parts(written)
        if any(POISON in part for part in _fixed(parts)) or any(POISON in content for content in contents):
            raise Untraceable
        return Trace(_merged(parts), tuple(questions))


def _fixed(parts: Parts) -> Iterable[str]:
    for part in parts:
        if isinstance(part, str):
            yield part
        elif not isinstance(part[0], int):
            yield from _fixed(part[0])


def _merged(parts: Parts) -> Parts:
    """The same with neighbouring fixed texts as one."""
    merged: list[Part] = []
    for part in parts:
        if merged and isinstance(part, str) and isinstance(merged[-1], str):
            merged[-1] += part
        elif part != "":
            merged.append(part)
    return tuple(merged)


def _environment() -> Any:
    """jinja for chat templates, but that what is written remembers what it is made of."""

    class Environment(Sandbox):
        def call(self, context: Any, called: Any, *args: Any, **named: Any) -> Any:
            owner = getattr(called, "__self__", None)
            if isinstance(owner, str) and not isinstance(owner, _Traced):
                _check_none_traced(*args, *named.values())  # a plain string's method reads its arguments unseen
            return super().call(context, called, *args, **named)

    environment = Environment()
    environment.concat = _join  # type: ignore[method-assign]
    environment.filters.update({name: _watched(apply) for name, apply in environment.filters.items()})
    environment.filters.update(dict.fromkeys(READ_UNSEEN, _untraceable))
    return environment


def _watched(apply: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that is traced in what it is applied to, and refuses contents anywhere else."""
    others = 2 if hasattr(apply, "jinja_pass_arg") else 1

    @wraps(apply)
    def watched(*args: Any, **named: Any) -> Any:
        _check_none_traced(*args[others:], *named.values())
        return apply(*args, **named)

    return watched


def _check_none_traced(*values: Any) -> None:
    if any(isinstance(value, _Traced) for value in values):
        raise Untraceable


def _check_searches(template: str, environment: Any) -> None:
    """Raises Untraceable if the template may look for a content in a plain string, which would not be seen."""
    from jinja2 import nodes

    for compared in environment.parse(template).find_all(nodes.Compare):
        for operand in compared.ops:
            listed = isinstance(operand.expr, (nodes.List, nodes.Tuple, nodes.Dict))
            if operand.op in ("in", "notin") and not listed and not isinstance(compared.expr, nodes.Const):
                raise Untraceable
