"""Very many conversations to tokens: the `Renderer`, with its two slow steps done for many rows at once.

What is an answer, what is trained and what is refused is decided by the renderer's own code. The template's text and the
tokens of a text come from elsewhere (`trace`, `token_cache`), and so does which tokens are the answer where the shape of a
conversation tells that (`example_plan`); all three are checked against the renderer before they are used. A tokenizer works
without Python's lock, so one chunk of conversations is tokenised while the next is rendered.
"""

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from typing import Any

from tunesmith.data.bad_rows import OnBadRow, refuse
from tunesmith.data.controls import ControlTokens
from tunesmith.data.conversation import Conversation, Message
from tunesmith.data.example_plan import ExamplePlan
from tunesmith.data.render import Example, Renderer
from tunesmith.data.template import Messages, Tools
from tunesmith.data.token_cache import TokenCache
from tunesmith.data.trace import Trace, Tracer, Untraceable
from tunesmith.data.turns import Turns
from tunesmith.errors import RowError, TunesmithError

CHUNK = 512
"""Conversations in a piece of work."""
THREADS = 2
"""One renders while the other tokenises; Python itself runs on one core."""
TRACES = 8
"""Ways a template may go for conversations of one shape before it is run for each."""


class BatchRenderer(Renderer):
    """As the renderer it is made of, which is its plain twin: the same examples, sooner."""

    @staticmethod
    def like(renderer: Renderer) -> "BatchRenderer":
        made = BatchRenderer.__new__(BatchRenderer)
        vars(made).update(vars(renderer))
        made._turns = turns = _TracedTurns.like(renderer._turns)
        made.controls = controls = _CachedControls.like(renderer.controls)
        made._planned = _Planned(turns.template, controls, renderer) if renderer.assistant_only else None
        return made

    _planned: "_Planned | None"

    def examples(
        self, conversations: Iterable[Conversation], watch: Callable[[int], None] = lambda done: None, bad: OnBadRow = refuse
    ) -> list[Example]:
        """As `Renderer.examples`; ``watch`` is told less often."""
        made: list[Example] = []
        done = 0
        rest = iter(conversations)
        with ThreadPoolExecutor(THREADS, "render") as pool:
            work: deque[Future[tuple[list[Example], list[RowError], int]]] = deque()
            while True:
                while len(work) <= THREADS and (chunk := list(islice(rest, CHUNK))):
                    work.append(pool.submit(self._some, chunk))
                if not work:
                    return made
                examples, errors, count = work.popleft().result()
                for error in errors:
                    bad(error)
                made += examples
                done += count
                watch(done)

    def _some(self, chunk: Sequence[Conversation]) -> tuple[list[Example], list[RowError], int]:
        """Examples of some conversations, what is wrong with others, and how many there were."""
        errors: list[RowError] = []
        return super().examples(chunk, bad=errors.append), errors, len(chunk)

    def _chunk(self, conversations: Sequence[Conversation], bad: OnBadRow) -> Iterator[list[Example]]:
        planned = self._planned.examples(conversations) if self._planned else [None] * len(conversations)
        rest = super()._chunk([c for c, example in zip(conversations, planned) if example is None], bad)
        return (next(rest) if example is None else [example] for example in planned)


class _Planned:
    """Examples whose answers are known from the conversation's shape."""

    def __init__(self, template: "TracedTemplate", controls: "_CachedControls", renderer: Renderer) -> None:
        self.template, self.controls, self.renderer = template, controls, renderer
        self.stop = renderer.tokenizer.convert_ids_to_tokens(renderer.stop_token_id)
        self._plans: dict[tuple[str, ...], list[ExamplePlan] | None] = {}  # None: the renderer is asked

    def examples(self, conversations: Sequence[Conversation]) -> list[Example | None]:
        """An example for each conversation, None where there is no plan for it."""
        found = [self._plan(conversation) for conversation in conversations]
        pieces = iter(self.controls.cache.encode_pieces([plan[1] for plan in found if plan]))
        return [plan[0].example(next(pieces), c.where) if plan else None for plan, c in zip(found, conversations)]

    def _plan(self, conversation: Conversation) -> tuple[ExamplePlan, str] | None:
        """A conversation's plan and text."""
        messages = conversation.messages
        if conversation.tools or conversation.is_document or self.controls.find_in(messages):
            return None  # what the shape of roles and contents does not say
        last = max((i for i, message in enumerate(messages) if message.role == "assistant"), default=0)
        roles = tuple([message.role for message in messages[: last + 1]])
        plans = self._plans.setdefault(roles, [])
        if plans is None:
            return None
        contents = [message.content for message in messages[: last + 1]]
        for plan in plans:
            text = plan.text(contents)
            if text is not None:
                return plan, text
        return self._new(roles, contents, conversation)

    def _new(self, roles: tuple[str, ...], contents: list[str], conversation: Conversation) -> tuple[ExamplePlan, str] | None:
        """A new plan, if the renderer comes to the same example."""
        plans = self._plans[roles]
        messages = [{"role": role, "content": content} for role, content in zip(roles, contents)]
        answers = [i for i, role in enumerate(roles) if role == "assistant"]
        traces = [self.template.trace(messages[:i], True) for i in answers] if self.controls.cache.cuts else [None]
        whole = self.template.trace(messages, False)
        plan = None
        if whole and plans is not None and len(plans) < TRACES and all(traces):
            plan = ExamplePlan.of(whole, [trace for trace in traces if trace], answers, self.stop, self.controls.cache)
        text = plan.text(contents) if plan else None
        if plan and text is not None:
            (pieces,) = self.controls.cache.encode_pieces([text])
            with suppress(TunesmithError):
                if [plan.example(pieces, conversation.where)] == self.renderer.examples([conversation]):
                    assert plans is not None
                    plans.append(plan)
                    return plan, text
        if not plans:
            self._plans[roles] = None
        return None


class _CachedControls(ControlTokens):
    """Texts are tokenised in pieces, each once."""

    @staticmethod
    def like(controls: ControlTokens) -> "_CachedControls":
        made = _CachedControls.__new__(_CachedControls)
        vars(made).update(vars(controls))
        made.cache = TokenCache(controls.tokenizer)
        return made

    cache: TokenCache

    def find_in(self, messages: Sequence[Message]) -> bool:
        """Whether messages hold a control token, or more than a role and a content that is learnt if it is an answer's."""
        search = self._pattern.search
        if any(message.more or not message.train or search(message.content) or search(message.role) for message in messages):
            return True
        return any(self.find_folded(message.content) for message in messages) if self._folded else False

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        return self.cache.encode(texts)


def _is_plain(message: Any) -> bool:
    return isinstance(message, dict) and message.keys() == {"role", "content"}


class _TracedTurns(Turns):
    """The template's text comes from its traces, where there are some."""

    @staticmethod
    def like(turns: Turns) -> "_TracedTurns":
        made = _TracedTurns.__new__(_TracedTurns)
        vars(made).update(vars(copy.copy(turns)))
        made.template = TracedTemplate(turns)
        return made

    template: "TracedTemplate"

    def text(self, messages: Messages, tools: Tools = (), *, prompt: bool) -> str:
        known = None if tools else self.template.text(messages, prompt)
        return super().text(messages, tools, prompt=prompt) if known is None else known


class TracedTemplate:
    """A chat template by its traces; the plain twin is ``turns.text``."""

    def __init__(self, turns: Turns) -> None:
        from jinja2 import TemplateError

        self._plain: Callable[[Messages, bool], str] = lambda messages, prompt: turns.text(messages, prompt=prompt)
        self._traces: dict[tuple[bool, tuple[str, ...]], list[Trace] | None] = {}  # None: the template is run
        self._tracer: Tracer | None = None
        template = turns.tokenizer.chat_template
        if isinstance(template, str):
            with suppress(TemplateError, Untraceable):
                self._tracer = Tracer(template, dict(turns.tokenizer.special_tokens_map))

    def text(self, messages: Messages, prompt: bool) -> str | None:
        """The template's text, or None if the template must be run for it."""
        trace = self.trace(messages, prompt)
        return trace.spelled([message["content"] for message in messages]) if trace else None

    def trace(self, messages: Messages, prompt: bool) -> Trace | None:
        """The trace that holds for these messages, if there is one."""
        if self._tracer is None or not all(map(_is_plain, messages)):
            return None
        shape = prompt, tuple([message["role"] for message in messages])
        traces = self._traces.setdefault(shape, [])
        if traces is None:
            return None
        contents = [message["content"] for message in messages]
        for trace in traces:
            if trace.holds(contents):
                return trace
        return self._new(shape, messages, contents)

    def _new(self, shape: tuple[bool, tuple[str, ...]], messages: Messages, contents: list[Any]) -> Trace | None:
        """A new trace, checked against the template itself."""
        from jinja2 import TemplateError

        traces = self._traces[shape]
        assert self._tracer is not None
        with suppress(Untraceable, TemplateError, TunesmithError, TypeError, AttributeError):
            trace = self._tracer.trace(shape[1], contents, shape[0])
            if traces is not None and len(traces) < TRACES and trace.text(contents) == self._plain(messages, shape[0]):
                traces.append(trace)
                return trace
        self._traces[shape] = None
        return None
