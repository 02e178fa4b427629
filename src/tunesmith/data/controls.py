"""Control tokens, and text that only looks like them.

A tokenizer reads ``<|im_end|>`` as a control token wherever it stands, also where a user typed it. So typed ones are *veiled*
before the chat template sees them: what reads like a control token in the rendered text was then written by the template. A
row with veiled ones is tokenised by a *twin* of the tokenizer, the same in every part but for the names of its control
tokens: the template's own are written by their new names, the typed ones as they were typed, and fall into ordinary tokens
together with the text around them. Rows without any go to the tokenizer itself.
"""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from tunesmith.errors import DataError

PRIVATE = [chr(code) for code in range(0x10FFFD, 0x10FFF0, -1)]
"""Characters without a meaning that stand for what is veiled and for renamed control tokens, if the text holds none of them."""


class ControlTokens:
    """The control tokens of one tokenizer.

    Args:
        extra: added tokens that are not marked special and yet open or close turns.
    """

    def __init__(self, tokenizer: Any, extra: Iterable[str] = ()) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.get_added_vocab()
        self.special = special_ids(tokenizer)
        names = [name for name, number in added.items() if number in self.special or name in set(extra)]
        self.names = sorted((name for name in names if name.strip()), key=len, reverse=True)
        self.ids = {added[name] for name in self.names}
        self._pattern = re.compile("|".join(map(re.escape, self.names)) or "(?!)")
        self._firsts = {name[0] for name in self.names}
        self._twins: dict[str, Any] = {}
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        self._folded = self._find_folded_names()

    def find(self, value: Any) -> str | None:
        """The first control token spelled out in a text, or in the texts and keys of lists and objects."""
        if isinstance(value, str):
            match = self._pattern.search(value) if any(first in value for first in self._firsts) else None
            return match[0] if match else self.find_folded(value)
        return next((found for item in _items(value) if (found := self.find(item))), None)

    def find_folded(self, text: str) -> str | None:
        """The first control token that a text spells otherwise, as ``<|IM_END|>``, and that this tokenizer takes it for."""
        if self._folded is None or self._backend is None:
            return None
        match = self._folded.search(self._backend.normalizer.normalize_str(text))
        return match[0] if match else None

    def _find_folded_names(self) -> re.Pattern[str] | None:
        """Control tokens that are looked for in texts whose letters are made alike first; None if there are none."""
        if self._backend is None or self._backend.normalizer is None:
            return None
        normalizer = json.loads(self._backend.normalizer.__getstate__())
        steps = normalizer.get("normalizers", [normalizer])
        if all(step["type"] in ("Prepend", "Replace", "Strip") for step in steps):  # spaces alone
            return None
        names = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.normalized} & set(self.names)
        return re.compile("|".join(re.escape(self._backend.normalizer.normalize_str(name)) for name in names)) if names else None

    def begins(self, text: str) -> bool:
        """Whether a text begins with a control token."""
        return self._pattern.match(text.lstrip()) is not None

    def starts(self, text: str) -> list[int]:
        """Where control tokens begin in a text."""
        return [match.start() for match in self._pattern.finditer(text)]

    def mark_for(self, value: Any) -> str | None:
        """A character to veil with: one that stands nowhere in these texts, and is not the last of them."""
        free = [mark for mark in PRIVATE if not _holds(value, mark)]
        return free[0] if len(free) > 1 else None

    def veil(self, value: Any, mark: str) -> Any:
        """The value with every control token in its texts veiled."""
        if isinstance(value, str):
            return self._pattern.sub(lambda match: f"{mark}{self.names.index(match[0])}{mark}", value)
        if isinstance(value, dict):
            return {self.veil(key, mark): self.veil(item, mark) for key, item in value.items()}
        return [self.veil(item, mark) for item in value] if isinstance(value, (list, tuple)) else value

    def encode(self, texts: Sequence[str], mark: str | None = None) -> list[list[int]]:
        """Token ids of rendered texts; none is added. ``mark``: what veils, if anything is veiled.

        Raises:
            DataError: this tokenizer cannot keep control tokens apart from what is typed.
        """
        if mark is None:
            return self._plain(texts)
        if self._backend is None:
            raise self._impossible("it is not a fast one")
        return [self._spelled(text, mark) for text in texts]

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []

    def _spelled(self, text: str, mark: str) -> list[int]:
        """Tokens of a text in which typed control tokens are veiled by ``mark``."""
        char = next(c for c in PRIVATE if c != mark and c not in text)
        if char not in self._twins:
            self._twins[char] = self._make_twin(char)
        renamed, written = self._pattern.subn(lambda match: f"{char}{self.names.index(match[0])}{char}", text)
        typed = re.sub(f"{mark}([0-9]+){mark}", lambda match: self.names[int(match[1])], renamed)
        ids = self._twins[char].encode(typed, add_special_tokens=False).ids
        if sum(number in self.ids for number in ids) != written:
            raise self._impossible("it has no ordinary tokens that spell it")
        return ids

    def _make_twin(self, char: str) -> Any:
        """A tokenizer like this one, whose control token number k is called ``char k char``. Raises DataError."""
        from tokenizers import Tokenizer

        new = {name: f"{char}{k}{char}" for k, name in enumerate(self.names)}
        assert self._backend is not None
        state = json.loads(self._backend.to_str())
        for token in state["added_tokens"]:
            token["content"] = new.get(token["content"], token["content"])
        model = state["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {new.get(name, name): number for name, number in model["vocab"].items()}
        else:
            model["vocab"] = [[new.get(name, name), score] for name, score in model["vocab"]]
        if model.get("unk_token") in new:
            model["unk_token"] = new[model["unk_token"]]
        try:
            twin = Tokenizer.from_str(json.dumps(state))
        except Exception as error:  # tokenizers raises nothing more precise
            raise self._impossible(str(error)) from error
        twin.no_truncation()
        twin.no_padding()
        self._check(twin, new)
        return twin

    def _check(self, twin: Any, new: dict[str, str]) -> None:
        """Raises DataError unless the twin knows every control token by its new name alone."""
        vocabulary = self.tokenizer.get_added_vocab()
        for name, other in new.items():
            if twin.token_to_id(other) != vocabulary[name]:
                raise self._impossible(f"{name} is not a token of its own")
            if twin.encode(f"a{other}a", add_special_tokens=False).ids.count(vocabulary[name]) != 1:
                raise self._impossible(f"it changes text before it looks for {name}")

    def _impossible(self, reason: str) -> DataError:
        return DataError(f"This model's tokenizer cannot keep it text: {reason}.", "Remove it or write it differently.")


def special_ids(tokenizer: Any) -> set[int]:
    """Ids of the tokens that are marked special, and EOS."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def _items(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return list(value) if isinstance(value, (list, tuple)) else []


def _holds(value: Any, character: str) -> bool:
    return character in value if isinstance(value, str) else any(_holds(item, character) for item in _items(value))
