"""Conversations with a model: messages in, text out, with the base's own template and stop tokens."""

from collections.abc import Iterator, Sequence
from typing import Any

from tunesmith.base.context import context_of, positions_of
from tunesmith.data.render import Renderer
from tunesmith.errors import DataError
from tunesmith.generate.engine import Decoder, Sampling, generate
from tunesmith.generate.text_stream import TextStream


class Session:
    """A model and its renderer. ``answer`` may be called for the tuned model or, with ``base=True``, without its adapter."""

    def __init__(self, model: Any, renderer: Renderer) -> None:
        self.model, self.renderer = model, renderer
        first = renderer.stop_token_id
        self.stop_ids = [first, *sorted(renderer.stop_token_ids - {first})]

    @property
    def context(self) -> int:
        """Tokens the model can see, prompt and answer together."""
        return context_of(positions_of(self.model.config), self.renderer.tokenizer)

    def answer(
        self,
        conversations: Sequence[list[dict[str, str]]],
        sampling: Sampling = Sampling(),
        *,
        base: bool = False,
        raw: bool = False,
    ) -> list[str]:
        """The assistant's next message in each conversation; it ends where the model sees no further.

        Args:
            base: answer as the untuned model. raw: keep special tokens in the text.

        Raises:
            DataError: a message contains a control token, or the messages leave no room for an answer.
        """
        prompts = [self._prompt(messages) for messages in conversations]
        pad = self.renderer.tokenizer.pad_token_id
        answers = generate(self.model, prompts, self.stop_ids, pad, sampling, context=self.context, base=base)
        texts = [self.renderer.tokenizer.decode(ids, skip_special_tokens=not raw) for ids in answers]
        return texts if raw else [text.strip() for text in texts]

    def stream(self, messages: list[dict[str, str]], sampling: Sampling = Sampling(), *, base: bool = False) -> Iterator[str]:
        """The assistant's next message, piece by piece: never half a character, no special tokens; together they are what
        `answer` gives. Closing the iterator ends the generation.

        Raises:
            DataError: as `answer`.
        """
        return _pieces(self.tokens(self._prompt(messages), sampling, base=base), TextStream(self.renderer.tokenizer))

    def tokens(self, prompt: Sequence[int], sampling: Sampling = Sampling(), *, base: bool = False) -> Iterator[int]:
        """The answer to a prompt of token ids as it comes, its stop token too. Closing the iterator ends the generation."""
        if self.model.training:
            self.model.eval()
        pad = self.renderer.tokenizer.pad_token_id
        decoder = Decoder(self.model, self.stop_ids, pad, slots=1, context=self.context, base=base)
        decoder.add(prompt, sampling)
        try:
            while decoder.living:
                yield from decoder.step().values()
        except GeneratorExit:
            for key in decoder.living:
                decoder.drop(key)
            raise

    def _prompt(self, messages: list[dict[str, str]]) -> list[int]:
        prompt = self.renderer.prompt_ids(messages)
        room_for(len(prompt), self.context)
        return prompt


def room_for(
    prompt: int, context: int, fix: str = "Shorten them, or leave earlier turns out.", what: str = "The messages are"
) -> int:
    """Tokens left for the answer to a prompt of so many. Raises DataError, that says ``what`` it is and this ``fix``, if there are
    none."""
    if prompt >= context:
        raise DataError(f"{what} {prompt:,} tokens, and this model sees {context:,}, its answer included.", fix)
    return context - prompt


def _pieces(tokens: Iterator[int], text: TextStream) -> Iterator[str]:
    for token in tokens:
        if piece := text.add(token):
            yield piece
    if rest := text.close():
        yield rest


QUESTIONS = (
    "The Force is strong in you!",
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "2 + 2 =",
    "Translate to German: good morning.",
    'Give me {"name": ..., "age": ...} for a person of your choice.',
    "Why is the sky blue? Answer briefly.",
    "Bonjour, qui es-tu ?",
)
"""Of many kinds: what was trained is not known here, and all of it should be kept."""


def conversations(session: Session, new_tokens: int = 16) -> list[list[int]]:
    """Token ids of a few fixed questions with the beginning of this model's own answers, to compare models on."""
    prompts = [session.renderer.prompt_ids([{"role": "user", "content": text}]) for text in QUESTIONS]
    pad = session.renderer.tokenizer.pad_token_id
    answers = generate(session.model, prompts, session.stop_ids, pad, Sampling(max_new_tokens=new_tokens), context=session.context)
    return [prompt + answer for prompt, answer in zip(prompts, answers)]
