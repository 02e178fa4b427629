"""From a checked request to a growing answer: which model, whether there is room, the prompt's tokens, the limits."""

import asyncio
import copy
import threading
import time
from contextlib import suppress
from typing import Any

from tunesmith.data.messages import messages_of
from tunesmith.data.render import Renderer
from tunesmith.data.template import ASKED, PROBE_NAME, PROBE_TOOL, render_text
from tunesmith.data.tool_calls import tools_of
from tunesmith.errors import DataError, ModelError, TunesmithError
from tunesmith.generate.engine import Sampling
from tunesmith.generate.session import Session, room_for
from tunesmith.serve.answer import Answer, Ask
from tunesmith.serve.limits import Limits
from tunesmith.serve.metrics import Metrics
from tunesmith.serve.protocol import ChatRequest
from tunesmith.serve.refusal import RefusalError
from tunesmith.serve.worker import Worker, decoders


class Talk:
    """An answer under way and the place it takes, which `close` gives back. model: the name it was asked by."""

    def __init__(self, service: "Service", model: str) -> None:
        self.service, self.model = service, model
        self.answer: Answer | None = None
        self.began, self.end = time.monotonic(), "left"
        self.open = True
        service.open += 1

    def close(self) -> None:
        """Count it; if it still grows, it ends at the next token."""
        if not self.open:
            return
        self.open = False
        if self.answer is not None:
            self.answer.gone = True
            seconds, prompt = time.monotonic() - self.began, len(self.answer.ask.prompt)
            self.service.metrics.answered(self.model, prompt, self.answer.tokens, seconds, self.end)
        self.service.open -= 1  # counted before its place is free


class Service:
    """Answers requests with one session.

    Args:
        tuned, base: the names the two models are asked by.

    Attributes:
        open: requests that are being answered or wait. context: tokens the model can see.
    """

    def __init__(self, session: Session, tuned: str, base: str, limits: Limits = Limits()) -> None:
        self.limits, self.metrics, self.created = limits, Metrics(), int(time.time())
        self.names = {tuned: False, base if base != tuned else f"{base}-base": True}
        self.context = session.context
        self.worker = Worker(decoders(session, limits.slots))
        self.tokenizer, self.stop_ids = session.renderer.tokenizer, frozenset(session.stop_ids)
        # Prompts are made in other threads than the worker's, and one tokenizer is not for two threads.
        self._renderer, self._rendering = Renderer(copy.deepcopy(self.tokenizer)), threading.Lock()
        self.takes_tools = _takes_tools(self.tokenizer)
        self.open = 0

    async def begin(self, request: ChatRequest) -> Talk:
        """Begin the answer.

        Raises:
            RefusalError: there is no such model, no room, or the prompt cannot be answered.
        """
        if request.model not in self.names:
            known = " and ".join(repr(name) for name in self.names)
            raise RefusalError(
                404, f"There is no model {request.model!r} here; {known} are.", param="model", code="model_not_found"
            )
        if self.open >= self.limits.slots + self.limits.queue:
            raise RefusalError(503, f"{self.open} requests are being answered or wait.", code="busy", headers={"Retry-After": "2"})
        talk = Talk(self, request.model)
        try:
            prompt = await self._prompt(request)
            ask = Ask(prompt, self._sampling(request, len(prompt)), request.stops, self.names[request.model])
            if self.worker.over:
                raise RefusalError(503, self.worker.over, code="stopped")
            talk.answer = Answer(ask, self.tokenizer, self.stop_ids)
            self.worker.submit(talk.answer)
        except BaseException:
            talk.close()
            raise
        return talk

    async def _prompt(self, request: ChatRequest) -> list[int]:
        tools = request.tools if request.tools and request.tool_choice != "none" else None
        if tools and not self.takes_tools:
            raise RefusalError(400, "This model's chat template takes no tools.", param="tools", code="no_tools")
        seconds = self.limits.render_seconds
        loop = asyncio.get_running_loop()
        done: asyncio.Future[list[int]] = loop.create_future()

        def settle(ids: list[int] | None, error: Exception | None) -> None:
            if not done.done():
                done.set_exception(error) if error is not None else done.set_result(ids or [])

        def make() -> None:
            try:
                outcome: tuple[list[int] | None, Exception | None] = self._render(request, tools), None
            except Exception as error:
                outcome = None, error
            with suppress(RuntimeError):  # the server has stopped meanwhile
                loop.call_soon_threadsafe(settle, *outcome)

        # Not in a pool: a template that never ends must not keep the process from ending.
        threading.Thread(target=make, name="prompt", daemon=True).start()
        try:
            return await asyncio.wait_for(done, seconds)
        except asyncio.TimeoutError:
            raise RefusalError(503, f"The chat template took longer than {seconds:g} s.", code="slow_template") from None
        except TunesmithError as error:
            raise RefusalError(400, f"{error.what} {error.fix}", param="messages", code="unusable_messages") from error

    def _render(self, request: ChatRequest, tools: list[dict[str, Any]] | None) -> list[int]:
        """In a thread of its own. Raises TunesmithError; TimeoutError if another prompt has been stuck for long."""
        messages = messages_of([message.as_dict() for message in request.messages], "The request", "messages")
        listed = tools_of(tools, "The request, tools")
        if not self._rendering.acquire(timeout=self.limits.render_seconds):
            raise asyncio.TimeoutError
        try:
            return self._renderer.prompt_ids([message.as_dict() for message in messages], listed)
        finally:
            self._rendering.release()

    def _sampling(self, request: ChatRequest, prompt: int) -> Sampling:
        try:
            room = room_for(prompt, self.context)
        except DataError as error:
            raise RefusalError(400, str(error), param="messages", code="context_length_exceeded") from error
        asked = request.max_completion_tokens or request.max_tokens
        most = min(room, self.limits.answer)
        if asked is not None and asked > most:
            name = "max_completion_tokens" if request.max_completion_tokens else "max_tokens"
            seen = f"{prompt:,} tokens of messages leave {room:,} of {self.context:,}"
            raise RefusalError(
                400, f"{name} is {asked:,}; {seen}, and this server gives {self.limits.answer:,} at most.", param=name,
                code="context_length_exceeded" if asked > room else "too_many_tokens",
            )  # fmt: skip
        return Sampling(
            max_new_tokens=asked or min(most, self.limits.usual),
            temperature=0.0 if request.greedy else request.temperature or 0.0,
            top_p=request.top_p or 1.0,
            top_k=request.top_k or 0,
            seed=None if request.seed is None else request.seed % 2**63,
        )


def _takes_tools(tokenizer: Any) -> bool:
    try:
        return PROBE_NAME in render_text(tokenizer, [ASKED], True, [PROBE_TOOL])
    except ModelError:
        return False
