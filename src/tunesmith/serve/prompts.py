"""From a checked request to the tokens that the model answers to."""

import asyncio
import copy
import threading
from contextlib import suppress
from typing import Any

from tunesmith.data.messages import messages_of
from tunesmith.data.render import Renderer
from tunesmith.data.template import ASKED, PROBE_NAME, PROBE_TOOL, render_text
from tunesmith.data.text import text_of
from tunesmith.data.tool_calls import tools_of
from tunesmith.errors import DataError, ModelError, TunesmithError
from tunesmith.serve.protocol import AnswerRequest, ChatRequest
from tunesmith.serve.refusal import RefusalError
from tunesmith.serve.text_protocol import TextRequest


class Prompts:
    """Makes prompts beside the event loop and beside the worker: each in a thread of its own, one at a time.

    Args:
        seconds: that one may take.
    """

    def __init__(self, tokenizer: Any, seconds: float) -> None:
        # One tokenizer is not for two threads, and the worker has the other.
        self._renderer, self._rendering = Renderer(copy.deepcopy(tokenizer)), threading.Lock()
        self._seconds, self._takes_tools, self._opening = seconds, _takes_tools(tokenizer), _opening(tokenizer)

    async def of(self, request: AnswerRequest) -> list[list[int]]:
        """Token ids of each prompt.

        Raises:
            RefusalError: there can be no such prompt, or it takes too long.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[list[list[int]]] = loop.create_future()

        def settle(prompts: list[list[int]] | None, error: Exception | None) -> None:
            if not done.done():
                done.set_exception(error) if error is not None else done.set_result(prompts or [])

        def make() -> None:
            try:
                outcome: tuple[list[list[int]] | None, Exception | None] = self._make(request), None
            except Exception as error:
                outcome = None, error
            with suppress(RuntimeError):  # the server has stopped meanwhile
                loop.call_soon_threadsafe(settle, *outcome)

        # Not in a pool: a template that never ends must not keep the process from ending.
        threading.Thread(target=make, name="prompt", daemon=True).start()
        field = request.prompted_by
        try:
            return await asyncio.wait_for(done, self._seconds)
        except asyncio.TimeoutError:
            what, code = ("The chat template", "slow_template") if field == "messages" else ("The tokenizer", "slow_tokenizer")
            raise RefusalError(503, f"{what} took longer than {self._seconds:g} s.", code=code) from None
        except TunesmithError as error:
            raise RefusalError(400, f"{error.what} {error.fix}", param=field, code=f"unusable_{field}") from error

    def _make(self, request: AnswerRequest) -> list[list[int]]:
        """Raises TunesmithError and RefusalError; TimeoutError if another prompt has been stuck for long."""
        if not self._rendering.acquire(timeout=self._seconds):
            raise asyncio.TimeoutError
        try:
            if isinstance(request, TextRequest):
                return [self._continued(text, name) for text, name in zip(request.texts, request.names, strict=True)]
            assert isinstance(request, ChatRequest)
            return [self._asked(request)]
        finally:
            self._rendering.release()

    def _asked(self, request: ChatRequest) -> list[int]:
        """By the chat template."""
        tools = request.tools if request.tools and request.tool_choice != "none" else None
        if tools and not self._takes_tools:
            raise RefusalError(400, "This model's chat template takes no tools.", param="tools", code="no_tools")
        messages = messages_of([message.as_dict() for message in request.messages], "The request", "messages")
        return self._renderer.prompt_ids([message.as_dict() for message in messages], tools_of(tools, "The request, tools"))

    def _continued(self, text: str, name: str = "prompt") -> list[int]:
        """As plain text is trained: after what the tokenizer puts first. Control tokens are meant in a text that begins with one,
        which somebody has formatted; in any other they are text."""
        text, controls = text_of(text, f"The request, {name}"), self._renderer.controls
        typed = not controls.begins(text) and controls.find(text) is not None
        mark = controls.mark_for(text) if typed else None
        if typed and mark is None:
            raise DataError(f"{name} holds control tokens and every character they could be hidden with.", "Remove them.")
        ids = controls.encode([text if mark is None else controls.veil(text, mark)], mark)[0]
        whole = ids if ids[: len(self._opening)] == self._opening else self._opening + ids
        if not whole:
            raise DataError(f"{name} is empty, and this tokenizer puts nothing before it.", "Begin a text.")
        return whole


def _opening(tokenizer: Any) -> list[int]:
    """The tokens that this tokenizer puts before a text."""
    alone = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    places = (place for place in range(len(whole)) if whole[place : place + len(alone)] == alone)
    return list(whole[: next(places, 0)])


def _takes_tools(tokenizer: Any) -> bool:
    try:
        return PROBE_NAME in render_text(tokenizer, [ASKED], True, [PROBE_TOOL])
    except ModelError:
        return False
