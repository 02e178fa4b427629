"""Conversations to tokens, by the model's own chat template. Training and chat use this one renderer.

Where an answer begins and ends is found by rendering growing prefixes of the conversation and checking that each is
a prefix of the next, never by searching for marker strings.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from tunesmith.data.bad_rows import OnBadRow, refuse
from tunesmith.data.controls import ControlTokens, special_ids
from tunesmith.data.conversation import Conversation, Message
from tunesmith.data.example import IGNORE, Example, cut
from tunesmith.data.splice import Splicer
from tunesmith.data.tally import Tally
from tunesmith.data.template import Messages, Tools, find_own_header, find_turn_tokens, render_text
from tunesmith.data.turns import ANOTHER, Turn, Turns
from tunesmith.errors import DataError, ModelError, RowError

__all__ = ["IGNORE", "Example", "Renderer", "cut", "render_text"]

TOGETHER = 256
"""Conversations tokenised at once."""
PROBES = ("a", " é \n", "c\n\n")


@dataclass(frozen=True)
class _Draft:
    """An example before its tokens. texts: to encode. mark: what veils typed control tokens in them, None if there are none.
    finish: makes the example of their ids."""

    texts: list[str]
    mark: str | None
    finish: Callable[[Sequence[list[int]]], Example]


class Renderer:
    """Renders conversations with one tokenizer.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        assistant_only: label the answers and their stop tokens only, or every token.

    Attributes:
        stop_token_id: the token that ends an answer. controls: the control tokens of the vocabulary and template.
        unknown_id: the token for what the vocabulary cannot spell, None if there is no such. spelled: rows in which control
        tokens were spelled out and kept text. ended: those where one ends an answer. formatted: plain texts that had them
        already. unknown: rows that train the unknown token.

    Raises:
        ModelError: the template ends answers with no special token.
    """

    def __init__(self, tokenizer: Any, assistant_only: bool = True) -> None:
        self.tokenizer = tokenizer
        self.assistant_only = assistant_only
        special = special_ids(tokenizer)
        self._turns = Turns(tokenizer, special)
        self.stop_token_id = self._turns.stop_id
        self._header = find_own_header(tokenizer, special)
        self.controls = ControlTokens(tokenizer, find_turn_tokens(tokenizer, special))
        self._splicer = Splicer(self.controls.encode, self.controls.starts, self._probes())
        self._asked, self.spelled, self.ended, self.formatted, self.unknown = (Tally() for _ in range(5))
        begun = tokenizer("a")["input_ids"][:1]
        self._bos = begun if begun == [tokenizer.bos_token_id] else []
        self.unknown_id = None if tokenizer.unk_token_id in self.stop_token_ids else tokenizer.unk_token_id

    @property
    def stop_token_ids(self) -> set[int]:
        """All tokens that end something that is trained: answers, calls of tools, plain texts."""
        return {*self._turns.stops.values(), self.tokenizer.eos_token_id} - {None}

    def notes(self, conversations: int, examples: int) -> tuple[str, ...]:
        """What was done to the rows seen so far that a user should know; counts: of what they were and became."""
        header = f"the chat template has no generation prompt: the model learns to write {self._header!r} before each answer"
        unknown = self.tokenizer.unk_token
        told = (
            (len(self._header) * self._asked.count, header),
            (self.spelled.count, f"control tokens of this model are spelled out in {self.spelled}: they stay text"),
            (self.ended.count, f"answers end with a spelled-out stop token in {self.ended}: take it out, one is added to each"),
            (self.unknown.count, f"this vocabulary has no tokens for characters in {self.unknown}: {unknown} is learnt for them"),
            (self.formatted.count, f"plain text begins with a control token in {self.formatted}: taken as formatted already"),
            (examples - conversations, f"the template rewrites earlier turns: {examples:,} examples from rows: {conversations:,}"),
        )
        return tuple(note for count, note in told if count > 0)

    def prompt_ids(self, messages: Messages, tools: Tools = ()) -> list[int]:
        """Tokens of a conversation that waits for the assistant.

        Raises:
            DataError: a message spells out a control token, and this tokenizer cannot keep that text.
        """
        mark = self._mark(messages, tools, "The conversation")
        text = self._turns.text(*self._veiled(messages, tools, mark), prompt=True)
        return self._encode([text], mark, "The message", messages)[0]

    def examples(
        self, conversations: Iterable[Conversation], watch: Callable[[int], None] = lambda done: None, bad: OnBadRow = refuse
    ) -> list[Example]:
        """The examples of conversations, in order: mostly one each, more where the template rewrites earlier turns.

        Args:
            watch: told how many conversations are done. bad: told of rows the template cannot show exactly, which are then
                left out; by default it raises RowError (with file and line).
        """
        made: list[Example] = []
        done = 0
        rows = iter(conversations)
        while chunk := list(islice(rows, TOGETHER)):
            for examples in self._chunk(chunk, bad):
                made += examples
                done += 1
                watch(done)
        return made

    def example(self, conversation: Conversation) -> Example:
        """The one example of a conversation. Raises RowError as `examples`, and if the template needs several."""
        examples = self.examples([conversation])
        if len(examples) != 1:
            raise RowError(
                f"{conversation.where}: the chat template rewrites earlier turns, so its answers take {len(examples)} examples.",
                "Ask for `examples`.",
            )
        return examples[0]

    def _chunk(self, conversations: Sequence[Conversation], bad: OnBadRow) -> Iterator[list[Example]]:
        """The examples of each conversation. Texts with nothing veiled in them are encoded together."""
        drafts = [_attempt(partial(self._drafts, conversation), bad) for conversation in conversations]
        texts = [text for row in drafts for draft in row if draft.mark is None for text in draft.texts]
        encoded = iter(self.controls.encode(texts))
        for conversation, row in zip(conversations, drafts):
            tokens = [list(islice(encoded, len(draft.texts))) if draft.mark is None else None for draft in row]
            yield _attempt(partial(self._finished, conversation, row, tokens), bad)

    def _finished(
        self, conversation: Conversation, drafts: Sequence[_Draft], tokens: Sequence[list[list[int]] | None]
    ) -> list[Example]:
        messages = conversation.as_dicts()
        return [
            draft.finish(self._encode(draft.texts, draft.mark, conversation.where, messages) if ids is None else ids)
            for draft, ids in zip(drafts, tokens)
        ]

    def _drafts(self, conversation: Conversation) -> list[_Draft]:
        """One draft, or more if the template rewrites earlier turns. Raises RowError."""
        if conversation.is_document:
            return [self._document(conversation)]
        self._asked.add(conversation.where)
        where, marked = conversation.where, conversation.as_dicts()
        mark = self._mark(marked, conversation.tools, where)
        if mark is not None:
            self._tell_spelled(conversation)
        messages, tools = self._veiled(marked, conversation.tools, mark)
        answers = [message.role == "assistant" for message in conversation.messages]
        learnt = [answer and message.train for answer, message in zip(answers, conversation.messages)]
        if self.assistant_only:
            chains = self._turns.chains(messages, learnt, tools, where)
            return [self._spliced(chain, [True] * len(chain), mark, where) for chain in chains]
        try:
            text = self._turns.text(messages, tools, prompt=False)
        except ModelError as error:
            raise RowError(f"{where}: {error.what}", error.fix) from error
        if learnt == answers:
            return [_Draft([text], mark, lambda ids: Example(ids[0], list(ids[0]), where))]
        chains = self._turns.chains(messages, answers, tools, where)
        if len(chains) > 1 or not text.startswith(chains[0][-1].done):
            raise RowError(
                f"{where}: the chat template rewrites earlier turns, so an answer that is not to be trained cannot be left out.",
                "Train answers only (--assistant-only-loss true).",
            )
        flags = [wanted for wanted, answer in zip(learnt, answers) if answer]
        return [self._spliced(chains[0], flags, mark, where, text)]

    def _tell_spelled(self, conversation: Conversation) -> None:
        self.spelled.add(conversation.where)
        stops = (*self._turns.stops, *([self.tokenizer.eos_token] if self.tokenizer.eos_token else []))
        if any(message.role == "assistant" and message.content.rstrip().endswith(stops) for message in conversation.messages):
            self.ended.add(conversation.where)

    def _spliced(
        self, turns: Sequence[Turn], learnt: Sequence[bool], mark: str | None, where: str, text: str | None = None
    ) -> _Draft:
        """The draft of a text's turns. With ``text``, the whole of it, every token is labelled but for unlearnt answers."""
        texts = [piece for last, turn in zip([None, *turns], turns) for piece in self._splicer.texts(turn, last)]
        encode = partial(self.controls.encode, mark=mark)

        def finish(encoded: Sequence[list[int]]) -> Example:
            ids: list[int] = []
            labels: list[int] = []
            rest: list[int] = []
            for k, turn in enumerate(turns):
                last = turns[k - 1] if k else None
                prompt, answer = self._splicer.tokens(turn, last, encoded[2 * k : 2 * k + 2], ids, encode)
                end = self._end(answer, turn, where)
                ids += prompt + answer[:end]
                labels += [IGNORE] * len(prompt) if text is None else prompt
                labels += answer[:end] if learnt[k] else [IGNORE] * end
                rest = answer[end:]
            if text is None:
                return Example(ids + rest, labels + [IGNORE] * len(rest), where)
            rest = self._splicer.alone(encode, text[turns[-1].end :])
            return Example(ids + rest, labels + rest, where)

        return _Draft(texts, mark, finish)

    def _end(self, answer: list[int], turn: Turn, where: str) -> int:
        """Tokens of the answer that are trained: up to and including the stop token."""
        stop = self._turns.stops[turn.stop]
        places = [place for place, token in enumerate(answer, 1) if token == stop]
        behind = turn.after.count(turn.stop, turn.end)
        if len(places) <= behind:
            raise RowError(f"{where}: {turn.stop!r} ends an answer as text, but not as a token.", ANOTHER)
        return places[-1 - behind]

    def _document(self, conversation: Conversation) -> _Draft:
        """Plain text between BOS, if the vocabulary begins with one, and EOS. A text that begins with a control token was
        formatted already: its control tokens are meant. In any other they are text."""
        text, where, eos = conversation.messages[0].content, conversation.where, self.tokenizer.eos_token_id
        if eos is None:
            raise ModelError("This model has no EOS token, so plain text would never end.", "Train conversations instead.")
        formatted = self.controls.begins(text)
        message = [conversation.messages[0].as_dict()]
        mark = None if formatted else self._mark(message, (), where)
        veiled = text if mark is None else self.controls.veil(text, mark)
        if formatted or mark is not None:
            (self.formatted if formatted else self.spelled).add(where)

        def finish(encoded: Sequence[list[int]]) -> Example:
            ids = encoded[0]
            ids = ids if ids[:1] == self._bos else self._bos + ids
            ids = ids if formatted and set(ids[-2:]) & self.stop_token_ids else [*ids, eos]
            return Example(ids, list(ids), where)

        return _Draft([veiled], mark, finish)

    def _mark(self, messages: Messages, tools: Tools, where: str) -> str | None:
        """What veils the control tokens that are spelled out in these texts, None if there are none. Raises RowError."""
        if self.controls.find(messages) is None and not (tools and self.controls.find(tools)):
            return None
        mark = self.controls.mark_for([messages, tools])
        if mark is None:
            raise RowError(f"{where} holds control tokens and every character they could be hidden with.", "Remove it.")
        return mark

    def _veiled(self, messages: Messages, tools: Tools, mark: str | None) -> tuple[Messages, Tools]:
        if mark is None:
            return messages, tools
        return self.controls.veil(messages, mark), self.controls.veil(tools, mark)

    def _encode(self, texts: Sequence[str], mark: str | None, where: str, messages: Messages) -> list[list[int]]:
        """Raises RowError if typed control tokens cannot be kept text, with the number of the message."""
        try:
            return self.controls.encode(texts, mark)
        except DataError as error:
            found = [(number, name) for number, m in enumerate(messages, 1) if (name := self.controls.find(m)) is not None]
            number, name = found[0] if found else (0, self.controls.names[0])
            place = f"{where}, message {number}" if number else f"{where}, tools"
            raise RowError(
                f"{place}: the text contains {name!r}, which this model reads as a control token. {error.what}", error.fix
            ) from error

    def _probes(self) -> list[list[Turn]]:
        """Turns to try the splicing on; none if the template wants other conversations than these."""
        probes: list[list[Turn]] = []
        for first in PROBES:
            messages = [
                Message(role, content).as_dict() for role, content in zip(("user", "assistant") * 2, (first, "b", first, "b"))
            ]
            try:
                probes += self._turns.chains(messages, [False, True] * 2, (), "A probe")
            except RowError:
                continue
        return probes


def _attempt(make: Callable[[], list[Any]], bad: OnBadRow) -> list[Any]:
    try:
        return make()
    except RowError as error:
        bad(error)
        return []
