"""Where the answers of a conversation stand in the chat template's text.

The conversation is rendered in growing prefixes: up to an answer, as it is when the model is asked, and with the answer. The
first must be a prefix of the second; what the second adds is the answer. A template may write earlier turns otherwise once
later ones follow (models that think forget their thoughts). Then no one text holds all answers in the context each is given
in, and the conversation becomes several texts, each with the answers that it shows as they are asked for.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.data.messages import THOUGHTS
from tunesmith.data.template import (
    PROBE_VALUE,
    CallStyle,
    Messages,
    Tools,
    find_call_style,
    find_stop,
    probe_tail,
    render_text,
)
from tunesmith.errors import ModelError, RowError

ANOTHER = "Choose another template with --chat-template, such as zephyr."
OPENED = re.compile(r"<(think|thinking|thought|reasoning)>\s*\Z")
"""How the prompt of a model ends that has to think first."""
THOUGHT = re.compile(r"\s*<think>(?=.*?(</think>))", re.DOTALL)
"""How an answer begins that has its thought in its text; and what ends the thought."""
NO_TOOLS = "Use a model whose template knows tools, or rows without them."


@dataclass(frozen=True)
class Turn:
    """One answer. before: the prompt's text. after: that and the answer, and what follows when nothing follows. end: how far
    ``after`` is trained, the end of the stop token. stop: that token."""

    before: str
    after: str
    end: int
    stop: str

    @property
    def done(self) -> str:
        """The text up to the stop token."""
        return self.after[: self.end]


class Turns:
    """Finds the turns of conversations in one tokenizer's chat template.

    Args:
        special: ids of control tokens.

    Attributes:
        stop_id: the token that ends an answer. stops: text and id of all that end answers; calls of tools may have another.

    Raises:
        ModelError: the template ends answers with no special token.
    """

    def __init__(self, tokenizer: Any, special: set[int]) -> None:
        self.tokenizer, self.special = tokenizer, special
        self.stop_id, self.opened, self.closing = find_stop(tokenizer, special)
        self.stops = {str(tokenizer.convert_ids_to_tokens(self.stop_id)): self.stop_id}
        self._calls_known = False
        self._style: CallStyle | None = None

    def text(self, messages: Messages, tools: Tools = (), *, prompt: bool) -> str:
        """The template's text; ``prompt``: as it is when the assistant is asked. Raises ModelError, or DataError for tools."""
        if any(message.get("tool_calls") for message in messages):
            style = self._call_style()
            messages = [style.of(message) for message in messages]
        return render_text(self.tokenizer, messages, prompt, tools)

    def chains(self, messages: Messages, trained: Sequence[bool], tools: Tools, where: str) -> list[list[Turn]]:
        """The trained answers, in texts that each show theirs as they are asked for; mostly that is one text.

        Args:
            trained: of each message, whether it is an answer to learn.

        Raises:
            RowError: where an answer begins or ends cannot be known, or the template leaves something out.
        """
        chains: list[list[Turn]] = []
        checked = 0
        try:
            for index in (index for index, wanted in enumerate(trained) if wanted):
                turn = self._turn(messages, index, tools, where)
                self._check_prompt(messages, range(checked, index), tools, turn, where)
                checked = index + 1
                if chains and turn.before.startswith(chains[-1][-1].done):
                    chains[-1].append(turn)
                else:
                    chains.append([turn])
        except ModelError as error:
            raise RowError(f"{where}: {error.what}", error.fix) from error
        return chains

    def _turn(self, messages: Messages, index: int, tools: Tools, where: str) -> Turn:
        if index == 0:
            raise RowError(
                f"{where}: the assistant speaks first, and a chat template makes no prompt of nothing.",
                "Begin with a user or system message.",
            )
        before, after = self.text(messages[:index], tools, prompt=True), self.text(messages[: index + 1], tools, prompt=False)
        if not after.startswith(before):
            after = self._thought(messages[index]["content"], before, after, where, index + 1)
        else:
            self._check_answer(messages, index, tools, before, after, where)
        answered = len(after.removesuffix(self.closing))  # the closing may hold the stop token once more
        ends = {stop: after.rfind(stop, len(before), answered) for stop in self.stops}
        stop = max(ends, key=lambda stop: ends[stop])
        if ends[stop] < 0:
            raise RowError(f"{where}: the chat template does not end message {index + 1} with {stop!r} as it ends others.", ANOTHER)
        return Turn(before, after, ends[stop] + len(stop), stop)

    def _thought(self, content: str, before: str, after: str, where: str, number: int) -> str:
        """Prompt and answer of a model whose prompt opens a thought that its template forgets with the answer.

        The model is asked for the rest of the thought and the answer, so that is what it must be shown.
        """
        opened = self.opened
        tag = opened.strip()
        shown = before.removesuffix(opened)
        asked = OPENED.search(before)
        if asked and f"</{asked[1]}>" not in content:
            raise _thoughtless(f"<{asked[1]}>", where, number)
        if not opened or not tag.startswith("<") or not before.endswith(opened) or not after.startswith(shown):
            raise RowError(
                f"{where}: the chat template does not keep the prompt as it was once the answer (message {number}) follows, so "
                "where the answer begins cannot be known.",
                ANOTHER,
            )
        thought, closed, said = content.partition(f"</{tag[1:]}")
        if not closed or not thought.lstrip().startswith(tag):
            raise _thoughtless(tag, where, number)
        written = after[len(shown) :]
        kept = next((form for form in (said, said.lstrip(), said.rstrip(), said.strip()) if written.startswith(form)), None)
        if kept is None:
            raise RowError(f"{where}: the chat template changes message {number}, so it cannot be shown as it is asked.", ANOTHER)
        thought = thought.lstrip().removeprefix(tag)
        thought = thought.removeprefix(opened[opened.index(tag) + len(tag) :])
        space = said[: len(said) - len(said.lstrip())] if kept == kept.lstrip() else ""
        return before + thought + closed + space + written

    def _check_prompt(self, messages: Messages, indices: range, tools: Tools, turn: Turn, where: str) -> None:
        """Raises RowError if the template leaves a message, or the tools, out of the prompt."""
        prompt = messages[: indices.stop]
        for index in indices:
            content = messages[index]["content"]
            if messages[index]["role"] == "assistant" or content.strip() in turn.before:
                continue
            changed = [*prompt[:index], {**prompt[index], "content": f"{content}x"}, *prompt[index + 1 :]]
            if self.text(changed, tools, prompt=True) == turn.before:
                raise RowError(
                    f"{where}: the chat template leaves message {index + 1} ({messages[index]['role']}) out.",
                    f"Remove the message. {ANOTHER}",
                )
        if any(tool["function"]["name"] not in turn.before for tool in tools) and self.text(prompt, prompt=True) == turn.before:
            raise RowError(f"{where}: the chat template leaves the tools out, so this model cannot be told of them.", NO_TOOLS)

    def _check_answer(self, messages: Messages, index: int, tools: Tools, before: str, after: str, where: str) -> None:
        """Raises RowError if the template leaves part of an answer out, or puts a thought before the answer's own."""
        message, answer = messages[index], after[len(before) :]
        begun = THOUGHT.match(message["content"])
        if begun and answer.count(begun[1]) > message["content"].count(begun[1]) and not any(map(message.get, THOUGHTS)):
            raise RowError(
                f"{where}: message {index + 1} begins with a thought, and the chat template writes an empty one before it.",
                'Write the thought into the message as "reasoning_content", the rest as its content.',
            )
        for what, changed in _changes(message, answer):
            if self.text([*messages[:index], changed], tools, prompt=False) == after:
                inside = "Remove it, or write it into the text as <think> … </think>."
                raise RowError(
                    f"{where}: the chat template leaves {what} of message {index + 1} out.",
                    inside if what.removeprefix("the ") in THOUGHTS else f"Remove it. {ANOTHER}",
                )

    def _call_style(self) -> CallStyle:
        """Raises ModelError if the template writes no calls."""
        if not self._calls_known:
            style = find_call_style(self.tokenizer)
            if style:
                tail = probe_tail(self.tokenizer, style).rpartition(PROBE_VALUE)[2]
                ends = [i for i in self.tokenizer(tail, add_special_tokens=False)["input_ids"] if i in self.special]
                if ends and self.stop_id not in ends:  # a call may end with a token of its own
                    self.stops[str(self.tokenizer.convert_ids_to_tokens(ends[-1]))] = ends[-1]
            self._style, self._calls_known = style, True
        if self._style is None:
            raise ModelError("The chat template does not write tool calls, so this model cannot learn them.", NO_TOOLS)
        return self._style


def _thoughtless(tag: str, where: str, number: int) -> RowError:
    return RowError(
        f"{where}: this model is asked with {tag} and has to think first, but the text of message {number} holds no thought.",
        f"Begin the answer with {tag} … </{tag[1:]}, or choose another template with --chat-template, such as zephyr.",
    )


def _changes(message: Mapping[str, Any], answer: str) -> list[tuple[str, dict[str, Any]]]:
    """Parts of a message that do not stand in the answer as they are, and the message with each of them changed: the template
    may have written them in its own way, or left them out."""
    content = message["content"]
    changes: list[tuple[str, dict[str, Any]]] = []
    if content.strip() not in answer:
        changes.append(("the text", {**message, "content": f"{content}x"}))
        thought, closed, said = content.rpartition("</think>")
        if closed:
            changes.append(("the thought", {**message, "content": f"{thought}x{closed}{said}"}))
    for key in THOUGHTS:
        if message.get(key, "").strip() not in answer:
            changes.append((f"the {key}", {**message, key: f"{message[key]}x"}))
    calls = message.get("tool_calls", [])
    for number, call in enumerate(calls):
        name = call["function"]["name"]
        if answer.count(name) < sum(other["function"]["name"] == name for other in calls):
            other = {**call, "function": {**call["function"], "name": f"{name}x"}}
            changes.append((f"call {number + 1}", {**message, "tool_calls": [*calls[:number], other, *calls[number + 1 :]]}))
    return changes
