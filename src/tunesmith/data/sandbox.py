"""jinja for chat templates: as transformers sets it up, but that a template which came with a model can neither run on for
ever nor fill the memory.

transformers' own sandbox keeps a template from Python's internals, and lets it loop and build text without limit. Here every
turn of a loop, every call and every character that is made is paid for out of a budget, which grows with the conversation.
What would make much out of little (``'a' * 10**10``) is paid before it is done. A template that overdraws is not run again.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, wraps
from threading import local
from typing import Any

import jinja2.ext
from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tunesmith.data.template_costs import REFUSED_FILTERS, REFUSED_METHODS, characters, cost_of_method, cost_of_operator
from tunesmith.data.template_globals import FILTERS, GLOBALS

LONGEST_TEMPLATE = 200_000
"""Characters; those of real models have up to 30,000."""
WORK, WORK_PER_CHARACTER = 2**20, 64
"""What a template may spend: so much, and so much for each character of the conversation."""
SECONDS = 1.0
"""Processor time a template may take for a short conversation, and for every million characters of a long one."""
CHECKED = 32
"""Payments between two looks at the clock."""


class Overdrawn(SecurityError):  # noqa: N818 (the template's own state)
    """The template has spent its budget."""

    def __init__(self) -> None:
        super().__init__("it loops for too long or writes too much")


class Budget:
    """What a template may still spend. Outside of ``open`` it is the budget of an empty conversation."""

    __slots__ = ("left", "payments", "until")

    def __init__(self) -> None:
        self.open(0)

    def open(self, size: int) -> None:
        """Begin anew, for a conversation of so many characters."""
        self.left = WORK + WORK_PER_CHARACTER * size
        self.payments = 0
        self.until = time.thread_time() + SECONDS * (1 + size / 1e6)

    def pay(self, amount: int = 0) -> None:
        """Pay for one thing done, and for so many characters. Raises Overdrawn."""
        self.left -= amount + 1
        self.payments += 1
        if self.left < 0 or (self.payments % CHECKED == 0 and time.thread_time() > self.until):
            self.left = -1  # whoever catches this gets no further
            raise Overdrawn


class _Budgets(local):
    def __init__(self) -> None:
        self.mine = Budget()


_budgets = _Budgets()


def budget() -> Budget:
    """This thread's."""
    return _budgets.mine


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment; templates come from ``template``."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
        del self.globals["lipsum"]
        self.globals.update(GLOBALS)
        self.filters.update(FILTERS)
        for name in REFUSED_FILTERS:
            del self.filters[name]
        self.filters = {name: _paid(name, apply) for name, apply in self.filters.items()}
        self.filters.update(turns=_turns, made=_made, joined=self._joined)
        self.concat = written  # type: ignore[method-assign]

    def template(self, source: str) -> Any:
        """The template, compiled.

        Raises:
            TemplateError: it cannot be compiled, or is longer than any real one.
        """
        if len(source) > LONGEST_TEMPLATE:
            raise TemplateError(f"it has {len(source):,} characters, more than {LONGEST_TEMPLATE:,}")
        try:
            return self.from_string(_counted(self.parse(source), self))
        except (SyntaxError, RecursionError, MemoryError, ValueError) as error:
            raise TemplateError(f"it cannot be compiled ({type(error).__name__})") from error

    def is_safe_attribute(self, owner: Any, name: str, value: Any) -> bool:
        return name not in REFUSED_METHODS and super().is_safe_attribute(owner, name, value)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and type(left) is str and type(right) is str:  # most of what templates do
            budget().pay(len(left) + len(right))
            return left + right
        budget().pay(cost_of_operator(operator, left, right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __called: Any, *args: Any, **named: Any) -> Any:  # noqa: N805 (named may hold any name)
        method = getattr(__called, "__wrapped__", __called)  # jinja wraps str.format
        owner = getattr(method, "__self__", None)
        if isinstance(owner, (str, int, float)):
            if method.__name__ == "join" and args and not isinstance(args[0], (str, list, tuple)):
                args = (list(args[0]), *args[1:])
            budget().pay(cost_of_method(method.__name__, owner, args, named))
        return _made(super().call(__context, __called, *args, **named))

    def _joined(self, values: Iterable[Any]) -> Any:
        """What ``a ~ b`` is."""
        return self.concat(map(str, values))


def written(pieces: Iterable[str]) -> str:
    """What a template wrote, in one."""
    kept, pay = [], budget().pay
    for piece in pieces:
        pay(str.__len__(piece))
        kept.append(piece)
    return "".join(kept)


def _made(value: Any) -> Any:
    """A value that was made, paid for."""
    mine = budget()
    mine.pay(len(value) if type(value) is str else characters(value, mine.left))
    return value


def _turns(values: Any) -> Any:
    """What a loop goes through, its turns paid for."""
    try:
        count = len(values)
    except Exception:  # no length, or one that cannot be known
        return _paid_turns(values)
    if count > 1000:
        return _paid_turns(values)
    budget().pay(count)
    return values


def _paid_turns(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        budget().pay()
        yield value


def _paid(name: str, apply: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that is paid for."""
    first = 1 if hasattr(apply, "jinja_pass_arg") else 0

    @wraps(apply)
    def paid(*args: Any, **named: Any) -> Any:
        if len(args) > first:
            subject, rest = args[first], args[first + 1 :]
            if name == "join" and not isinstance(subject, (str, list, tuple)):
                subject = list(subject)
                args = (*args[:first], subject, *rest)
            budget().pay(cost_of_method(name, subject, rest, named))
        return _made(apply(*args, **named))

    return paid


@lru_cache(maxsize=64)
def _compiled(source: str) -> Any:
    return Sandbox().template(source)


_overdrew: dict[str, int] = {}
"""Templates that spent their budget, and the characters of the shortest conversation on which they did. A longer one is not tried;
a shorter one may be within it, as for a template that goes through all it wrote at every turn."""


def render(source: str, messages: Sequence[dict[str, Any]], tools: Any = None, **variables: Any) -> str:
    """The text a template makes of messages.

    Raises:
        Overdrawn: it spent its budget, now or before. TemplateError and what Python raises: it fails on these messages.
    """
    size = characters(messages) + characters(tools)
    if size >= _overdrew.get(source, sys.maxsize):
        raise Overdrawn
    budget().open(size)
    try:
        text: str = _compiled(source).render(messages=messages, tools=tools, documents=None, **variables)
    except Overdrawn:
        _overdrew[source] = size
        raise
    return text


def _counted(tree: nodes.Template, environment: Sandbox) -> nodes.Template:
    """The template with its loops, and what it makes by other means than calls and operators, paid for."""

    def wrap(node: Any, name: str) -> Any:
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno, environment=environment)

    def change(node: Any) -> Any:
        for field, value in node.iter_fields():
            if isinstance(value, list):
                setattr(node, field, [change(item) if isinstance(item, nodes.Node) else item for item in value])
            elif isinstance(value, nodes.Node):
                setattr(node, field, change(value))
        if isinstance(node, nodes.For):
            node.iter = wrap(node.iter, "turns")
        if isinstance(node, nodes.Concat):
            return wrap(nodes.List(node.nodes, lineno=node.lineno, environment=environment), "joined")
        if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            return wrap(node, "made")
        if isinstance(node, (nodes.List, nodes.Tuple, nodes.Dict)) and getattr(node, "ctx", "load") == "load":
            fixed = all(isinstance(n, (nodes.Const, nodes.Pair)) for n in node.iter_child_nodes()) and not any(
                not isinstance(n, nodes.Const) for pair in node.find_all(nodes.Pair) for n in pair.iter_child_nodes()
            )
            return node if fixed else wrap(node, "made")
        return node

    changed: nodes.Template = change(tree)
    return changed


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` … ``{% endgeneration %}``, which change no text; what is set inside is not known outside, as in
    transformers."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)
