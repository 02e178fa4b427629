"""Conversations with a model: messages in, text out, with the base's own template and stop tokens."""

from collections.abc import Sequence
from typing import Any

from tunesmith.data.render import Renderer
from tunesmith.generate.engine import Sampling, generate

BATCH = 40
"""Prompts answered together."""


class Session:
    """A model and its renderer. ``answer`` may be called for the tuned model or, with ``base=True``, without its adapter."""

    def __init__(self, model: Any, renderer: Renderer) -> None:
        self.model, self.renderer = model, renderer
        tokenizer = renderer.tokenizer
        stops = [renderer.stop_token_id, tokenizer.eos_token_id]
        self.stop_ids = [token for token in dict.fromkeys(stops) if token is not None]

    def answer(
        self,
        conversations: Sequence[list[dict[str, str]]],
        sampling: Sampling = Sampling(),
        *,
        base: bool = False,
        raw: bool = False,
    ) -> list[str]:
        """The assistant's next message in each conversation.

        Args:
            base: answer as the untuned model. raw: keep special tokens in the text.

        Raises:
            DataError: a message contains a control token.
        """
        prompts = [self.renderer.prompt_ids(messages) for messages in conversations]
        if base and hasattr(self.model, "disable_adapter"):
            with self.model.disable_adapter():
                answers = self._batches(prompts, sampling)
        else:
            answers = self._batches(prompts, sampling)
        texts = [self.renderer.tokenizer.decode(ids, skip_special_tokens=not raw) for ids in answers]
        return texts if raw else [text.strip() for text in texts]

    def _batches(self, prompts: list[list[int]], sampling: Sampling) -> list[list[int]]:
        pad = self.renderer.tokenizer.pad_token_id
        answers: list[list[int]] = []
        for start in range(0, len(prompts), BATCH):
            answers += generate(self.model, prompts[start : start + BATCH], self.stop_ids, pad, sampling)
        return answers


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
    answers = generate(session.model, prompts, session.stop_ids, pad, Sampling(max_new_tokens=new_tokens))
    return [prompt + answer for prompt, answer in zip(prompts, answers)]
