"""Conversations to tokens, by the model's own chat template. Training and chat use this one renderer.

Where an answer begins and ends is found by rendering growing prefixes of the conversation and checking that each is
a prefix of the next, never by searching for marker strings.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tunesmith.data.formats import Conversation
from tunesmith.errors import DataError, ModelError

IGNORE = -100
"""Label of a token that is not trained, as in transformers."""


@dataclass(frozen=True)
class Example:
    """One row as tokens.

    input_ids: token ids, length n. labels: for each token its own id if it is trained, else -100, length n (the loss
    shifts them: position i predicts token i + 1). where: the row it comes from.
    """

    input_ids: list[int]
    labels: list[int]
    where: str

    @property
    def trained(self) -> int:
        """Tokens that will be predicted and trained; the first of a row has no predecessor."""
        return sum(label != IGNORE for label in self.labels[1:])


class Renderer:
    """Renders conversations with one tokenizer.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        assistant_only: label the answers and their stop tokens only, or every token.
    """

    def __init__(self, tokenizer: Any, assistant_only: bool = True) -> None:
        self.tokenizer = tokenizer
        self.assistant_only = assistant_only
        special = _special(tokenizer)
        self._controls = [token for token, number in tokenizer.get_added_vocab().items() if number in special]
        self.stop_token_id = self._find_stop_token()

    def prompt_ids(self, messages: list[dict[str, str]]) -> list[int]:
        """Tokens of a conversation that waits for the assistant.

        Raises:
            DataError: a message contains a control token of this model, spelled out.
        """
        self._refuse_controls(messages, "The message")
        return self._ids(self._text(messages, True))

    def examples(self, conversations: Iterable[Conversation], watch: Callable[[int], None] = lambda done: None) -> list[Example]:
        """One example a conversation. ``watch`` is told how many are done.

        Raises:
            DataError: the template rewrites earlier turns, or a row contains control tokens (with file and line).
        """
        examples = []
        for number, conversation in enumerate(conversations, 1):
            examples.append(self.example(conversation))
            watch(number)
        return examples

    def example(self, conversation: Conversation) -> Example:
        """The tokens and labels of one conversation; raises as `examples`."""
        messages = conversation.as_dicts()
        self._refuse_controls(messages, conversation.where)
        ids: list[int] = []
        labels: list[int] = []
        done, rest = "", list[int]()
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                done, rest = self._turn(messages, index, done, ids, labels, conversation.where)
        if self.assistant_only:
            return Example(ids + rest, labels + [IGNORE] * len(rest), conversation.where)
        text = self._text(messages, False)
        whole = self._ids(text)
        return Example(whole, list(whole), conversation.where)

    def _turn(
        self, messages: list[dict[str, str]], index: int, done: str, ids: list[int], labels: list[int], where: str
    ) -> tuple[str, list[int]]:
        """Extend ids and labels, which spell ``done``, up to the stop token of the assistant turn ``messages[index]``.
        Gives the text they now spell, and the tokens that close the turn should nothing follow it."""
        if index == 0:
            raise DataError(
                f"{where}: the assistant speaks first, and a chat template makes no prompt of nothing.",
                "Begin with a user or system message.",
            )
        before, after = self._text(messages[:index], True), self._text(messages[: index + 1], False)
        if not after.startswith(before):
            raise DataError(
                f"{where}: the chat template does not keep the prompt as it was once the answer follows, so where the "
                "answer begins cannot be known.",
                "Choose another template with --chat-template, such as chatml.",
            )
        if not before.startswith(done):
            raise DataError(
                f"{where}: the chat template rewrites earlier turns (message {index + 1}), so they cannot be trained in one row.",
                "Split the conversation so that each row ends with one answer.",
            )
        prompt = self._continue(ids, done, before)
        labels.extend([IGNORE] * len(prompt))
        ids.extend(prompt)
        # A token may straddle prompt and answer; generation will see the prompt's own tokens, so training must too.
        answer = self._continue(ids, before, after)
        end = self._stop(answer, where)
        ids.extend(answer[:end])
        labels.extend(answer[:end])
        stop = self.tokenizer.convert_ids_to_tokens(self.stop_token_id)
        return after[: after.rindex(stop) + len(stop)], answer[end:]

    def _continue(self, ids: list[int], done: str, text: str) -> list[int]:
        """Tokens by which ``ids``, which spell ``done``, become ``text``; no token joins the two."""
        whole = self._ids(text)
        return whole[len(ids) :] if whole[: len(ids)] == ids else self._ids(text[len(done) :])

    def _stop(self, answer: list[int], where: str) -> int:
        """Tokens of the answer that are trained: up to and including the stop token."""
        try:
            return len(answer) - answer[::-1].index(self.stop_token_id)
        except ValueError:
            raise DataError(
                f"{where}: the chat template does not end this answer with "
                f"{self.tokenizer.convert_ids_to_tokens(self.stop_token_id)!r} as it ends others.",
                "Choose another template with --chat-template, such as chatml.",
            ) from None

    def _find_stop_token(self) -> int:
        """The token that ends an assistant turn, from the template itself."""
        probe = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        before, after = self._text(probe[:1], True), self._text(probe, False)
        tail = after[len(before) :].lstrip().removeprefix("b") if after.startswith(before) else after.rpartition("b")[2]
        special = _special(self.tokenizer)
        for token in self._ids(tail):
            if token in special:
                return token
        raise ModelError(
            f"The chat template ends an answer with {tail!r}, which holds no special token, so a model trained with it would "
            "never learn to stop.",
            "Choose another template with --chat-template, such as chatml.",
        )

    def _refuse_controls(self, messages: list[dict[str, str]], where: str) -> None:
        for number, message in enumerate(messages, 1):
            for control in self._controls:
                if control in message["content"]:
                    raise DataError(
                        f"{where}, message {number}: the text contains {control!r}, which this model reads as a control token.",
                        "Remove it or write it differently.",
                    )

    def _text(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        return render_text(self.tokenizer, messages, add_generation_prompt)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


def render_text(tokenizer: Any, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
    """The template's text for these messages. The template alone writes special tokens, so there is one BOS.

    Raises:
        ModelError: the template fails on these messages (a role it does not know, turns out of order).
    """
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except TemplateError as error:
        roles = " → ".join(message["role"] for message in messages)
        raise ModelError(
            f"The chat template refuses a conversation of {roles}: {error}.", "Use roles and an order that the model knows."
        ) from error


def _special(tokenizer: Any) -> set[int]:
    """Ids of control tokens: those marked special, and EOS."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def cut(examples: list[Example], max_length: int) -> tuple[list[Example], int, int]:
    """Examples cut to ``max_length`` tokens, how many rows were cut, and how many trained tokens that lost."""
    cut_rows = lost = 0
    kept = []
    for example in examples:
        if len(example.input_ids) > max_length:
            shorter = Example(example.input_ids[:max_length], example.labels[:max_length], example.where)
            cut_rows, lost = cut_rows + 1, lost + example.trained - shorter.trained
            example = shorter
        kept.append(example)
    return kept, cut_rows, lost
