"""Tokens of texts that have much in common: a text is tokenised in the pieces that control tokens cut it into, each once.

A tokenizer splits a text at its added tokens before it looks at anything else, and works on each part alone; so the tokens of
a text are those of its pieces, one after another, where a piece ends with an added token. What a template writes around the
contents is then tokenised once, and an answer is not tokenised again with every longer prefix of its conversation.
"""

import json
import re
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from tunesmith.data.word_cache import WordCache


class TokenCache:
    """Tokenises texts with a transformers tokenizer; the plain twin is ``tokenizer(text, add_special_tokens=False)``."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._cut, self._added = _cuts(tokenizer), _added(tokenizer)
        self._words = WordCache.of(tokenizer.backend_tokenizer) if self._cut else None

    @property
    def cuts(self) -> bool:
        """Whether texts of this tokenizer can be cut into pieces."""
        return self._cut is not None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text; none is added."""
        if self._cut is None:
            return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
        return [list(chain.from_iterable(pieces)) for pieces in self.encode_pieces(texts)]

    def encode_pieces(self, texts: Sequence[str]) -> list[list[list[int]]]:
        """The tokens of each piece of each text, for a tokenizer whose texts can be cut."""
        if not texts:
            return []
        cut = [self._pieces(text) for text in texts]
        known = self._encoded(dict.fromkeys(chain.from_iterable(cut)))
        return [[known[piece] for piece in its] for its in cut]

    def _encoded(self, pieces: Iterable[str]) -> dict[str, list[int]]:
        """The tokens of different pieces: by their words, as far as that goes."""
        plain, bodies, controls = [], [], []
        for piece in pieces:
            # A piece ends with a control token, but for the last of its text.
            parts = self._added.split(piece) if self._words and piece.isascii() else []
            if len(parts) == 1 or (len(parts) == 3 and not parts[2]):
                bodies.append(parts[0])
                controls.append("".join(parts[1:]))
            else:
                plain.append(piece)
        by_words = self._words.encode(bodies) if self._words else None
        if by_words is None:
            plain, bodies, by_words = [*plain, *(body + control for body, control in zip(bodies, controls))], [], []
        encoded = self.tokenizer.backend_tokenizer.encode_batch_fast(plain, add_special_tokens=False)  # on all cores
        known = dict(zip(plain, [one.ids for one in encoded]))
        ids = {control: [self.tokenizer.backend_tokenizer.token_to_id(control)] if control else [] for control in set(controls)}
        known.update((body + control, its + ids[control]) for body, control, its in zip(bodies, controls, by_words))
        return known

    def controls(self, text: str) -> int:
        """Tokens in a text that it is cut after."""
        return len(self._cut.findall(text)) if self._cut else 0

    def tail(self, text: str) -> str | None:
        """What stands behind the last of them; None if there is none."""
        return self._pieces(text + "\0")[-1][:-1] if self.controls(text) else None

    def _pieces(self, text: str) -> list[str]:
        assert self._cut is not None
        parts = self._cut.split(text)  # text, token, text, token, …, text
        pieces = [before + token for before, token in zip(parts[::2], parts[1::2])]
        return [*pieces, parts[-1]] if parts[-1] else pieces


def _added(tokenizer: Any) -> re.Pattern[str]:
    """Any added token, special or not."""
    contents = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, contents)) + ")") if contents else re.compile("((?!))")


def _cuts(tokenizer: Any) -> re.Pattern[str] | None:
    """What a text may be cut after; None where the tokens of a text are not known to be those of its pieces."""
    if not getattr(tokenizer, "is_fast", False):
        return None
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    added = state["added_tokens"]
    if any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in added):
        return None  # a token that takes the spaces beside it, or looks at the letters there
    if state["truncation"] or state["padding"] or '"first"' in json.dumps([state["pre_tokenizer"], state["normalizer"]]):
        return None  # a length that is fixed, or a space put before the first word of a text only
    contents = sorted((token["content"] for token in added if token["special"] and not token["normalized"]), key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, contents)) + ")") if contents else None
