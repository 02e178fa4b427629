"""Logprobs as OpenAI's clients read them: tokens as text and as bytes. In plain dicts: one request may have a million of them."""

import re
from functools import lru_cache
from typing import Any

from typing_extensions import TypedDict

from tunesmith.generate.logprobs import Chosen, Logprob
from tunesmith.generate.text_stream import UNFINISHED

BYTE = re.compile("<0x([0-9A-F]{2})>")
"""How SentencePiece names a token of one byte."""


class TopLogprob(TypedDict):
    """A token, as the text it is within a text, and its natural logarithm of probability. bytes: its UTF-8, which may be a part of
    a character; null where the vocabulary does not tell."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of an answer, and the likeliest ones in its place."""

    top_logprobs: list[TopLogprob]


class Logprobs(TypedDict):
    """Of the tokens whose text the answer holds: not of the token that ends it, nor of a stop text."""

    content: list[TokenLogprob]
    refusal: None


class TokenTexts:
    """The texts of single tokens. One thread may use it at a time, as its tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._known = lru_cache(maxsize=100_000)(self._find)

    def told(self, chosen: Chosen) -> TokenLogprob:
        """The same for a client."""
        return {**self._one(chosen), "top_logprobs": [self._one(other) for other in chosen.top]}

    def _one(self, logprob: Logprob) -> TopLogprob:
        text, raw = self._known(logprob.token)
        return {"token": text, "logprob": logprob.logprob, "bytes": raw}

    def _find(self, token: int) -> tuple[str, list[int] | None]:
        # Behind itself: at the beginning of a text some tokenizers leave out a token's space.
        text = self.tokenizer.decode([token, token])[len(self.tokenizer.decode([token])) :]
        raw = text.encode() if UNFINISHED not in text else _bytes_of(self.tokenizer.convert_ids_to_tokens(token))
        return text, None if raw is None else list(raw)


def _bytes_of(name: str) -> bytes | None:
    """Those of a token that is no whole text, by its name in the vocabulary: byte-level BPE's or SentencePiece's."""
    if found := BYTE.fullmatch(name):
        return bytes.fromhex(found[1])
    known = _byte_level()
    return bytes(known[character] for character in name) if all(character in known for character in name) else None


@lru_cache(maxsize=1)
def _byte_level() -> dict[str, int]:
    """The byte of each character that byte-level BPE writes for one."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {character: byte for byte, character in bytes_to_unicode().items()}
