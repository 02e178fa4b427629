"""Tokens of a text that grows by prompts and answers: every stretch is encoded once, and the whole is as exact as in one go.

Control tokens split a text before any other rule sees it, so what stands on either side of one is tokenised by itself. Where
that does not hold for a tokenizer (it is tried), whole texts are encoded and compared.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

from tunesmith.data.turns import Turn

Encode = Callable[[Sequence[str]], list[list[int]]]
LONGEST_HEAD = 200
LEADS = ("\n", "a")
"""What a text is put behind to be encoded as if it stood behind another: one that does not melt into what the text begins with."""


class Splicer:
    """Cuts turns into texts to encode, and puts their tokens together.

    Args:
        encode: texts to ids, nothing added. starts: where control tokens begin in a text. probes: chains of turns to try on.
    """

    def __init__(self, encode: Encode, starts: Callable[[str], list[int]], probes: Sequence[Sequence[Turn]]) -> None:
        alone, behind, newline = encode(["ab", "\nab", "\n"])
        # A vocabulary that puts a space before all it is given must not do so in the middle of a text.
        self._leads = () if behind == newline + alone else LEADS
        self.head, self._head_ids = self._find_head(encode, starts, probes)
        self.anchored = bool(probes) and all(
            self._whole(encode, turn.before) == self._whole(encode, last.done) + self._behind(encode, last, turn)
            for chain in probes
            for last, turn in pairwise(chain)
        )

    def texts(self, turn: Turn, last: Turn | None) -> list[str]:
        """The two texts to encode for a turn that continues ``last``: what comes before the answer, and the answer."""
        start = last.end - len(last.stop) if last and self.anchored else 0
        if self.head and turn.before.endswith(self.head):
            cut = len(turn.before) - len(self.head)
            return [turn.before[start:cut], turn.after[cut:]]
        return [turn.before[start:], turn.after[start:]]

    def tokens(
        self, turn: Turn, last: Turn | None, encoded: Sequence[list[int]], ids: list[int], encode: Encode
    ) -> tuple[list[int], list[int]]:
        """Tokens by which ``ids``, which spell ``last``, become the prompt, and those of the answer.

        A token may straddle prompt and answer; generation will see the prompt's own tokens, so training must too.

        Args:
            encoded: of `texts`. encode: as given, for the few texts that have to be encoded again.
        """
        first, second = encoded
        headed = bool(self.head) and turn.before.endswith(self.head)
        before = first + self._head_ids if headed else first
        done = ids[-1:] if last and self.anchored else ids
        if before[: len(done)] == done:
            prompt = before[len(done) :]
        else:
            assert last is not None
            prompt = self._alone(encode, turn.before[last.end :])
        opening = self._head_ids if headed else before
        if second[: len(opening)] == opening:
            return prompt, second[len(opening) :]
        return prompt, self._alone(encode, turn.after[len(turn.before) :])

    def alone(self, encode: Encode, text: str) -> list[int]:
        """Tokens of a text that stands behind another one."""
        return self._alone(encode, text)

    def _alone(self, encode: Encode, text: str) -> list[int]:
        for lead in self._leads:
            begun, both = encode([lead, lead + text])
            if both[: len(begun)] == begun:
                return both[len(begun) :]
        return encode([text])[0]

    def _find_head(
        self, encode: Encode, starts: Callable[[str], list[int]], probes: Sequence[Sequence[Turn]]
    ) -> tuple[str, list[int]]:
        """What every prompt ends with, from its last control token on; nothing if it cannot be encoded apart."""
        befores = [turn.before for chain in probes for turn in chain]
        found = starts(befores[0]) if befores else []
        head = befores[0][found[-1] :] if found else ""
        if not head or len(head) > LONGEST_HEAD:
            return "", []
        ids = encode([head])[0]
        for before in befores:
            if not before.endswith(head) or self._whole(encode, before) != encode([before[: -len(head)]])[0] + ids:
                return "", []
        return head, ids

    @staticmethod
    def _whole(encode: Encode, text: str) -> list[int]:
        return encode([text])[0]

    @staticmethod
    def _behind(encode: Encode, last: Turn, turn: Turn) -> list[int]:
        return encode([turn.before[last.end - len(last.stop) :]])[0][1:]
