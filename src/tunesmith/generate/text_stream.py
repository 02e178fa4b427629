"""Tokens to text as they come: no half a character, no special token, and in sum what decoding all at once gives."""

from typing import Any

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer writes for bytes that are not yet a character."""


def begun(text: str, word: str) -> int:
    """Characters at the end of a text that a word begins with; not the whole word."""
    return next((n for n in range(min(len(text), len(word) - 1), 0, -1) if text.endswith(word[:n])), 0)


class TextStream:
    """The text of a growing answer, stripped at both ends: leading white space is left out, and any other is held back until
    something follows it. strip: False for the text as it is."""

    def __init__(self, tokenizer: Any, strip: bool = True) -> None:
        self.tokenizer, self.strip = tokenizer, strip
        self.ids: list[int] = []
        self.shown, self.read = 0, 0  # ids that give the text before, and those whose text was handed on
        self.space: str | None = None  # held back; None before the text begins

    def add(self, token: int) -> str:
        """One more token: the text that is now certain, possibly none."""
        self.ids.append(token)
        return self._stripped(self._new(final=False))

    def close(self) -> str:
        """The rest: bytes that never became a character, as replacement characters."""
        return self._stripped(self._new(final=True))

    def _new(self, final: bool) -> str:
        """Decoded with the tokens before it, since a token's text may depend on them (a leading space)."""
        before = self._decode(self.ids[self.shown : self.read])
        text = self._decode(self.ids[self.shown :])
        if len(text) <= len(before) or (text.endswith(UNFINISHED) and not final):
            return ""
        self.shown, self.read = self.read, len(self.ids)
        return text[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _stripped(self, text: str) -> str:
        if not self.strip:
            return text
        if self.space is None:
            text = text.lstrip()
            if not text:
                return ""
            self.space = ""
        whole = self.space + text
        certain = whole.rstrip()
        self.space = whole[len(certain) :]
        return certain
