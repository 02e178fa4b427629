"""An example's tokens as text, each with what happens to it in training."""

from dataclasses import dataclass, replace
from typing import Any

from tunesmith.data.render import IGNORE, Example

LONGEST_CHARACTER = 8
"""Tokens a single character may fall into, at most; a vocabulary of bytes needs four."""


@dataclass(frozen=True)
class Piece:
    """A token, or the few that one character falls into.

    text: as it stands in the row. ids: the tokens. trained: whether it is predicted and learnt. special: a control token.
    cut: beyond max_length, so not in the batch at all. A trained token that is cut is ``trained`` too: that is what is lost.
    skipped: tokens of the row left out just before it.
    """

    text: str
    ids: tuple[int, ...]
    trained: bool
    special: bool
    cut: bool
    skipped: int = 0


def pieces_of(example: Example, tokenizer: Any, special: set[int], max_length: int, most: int | None = None) -> list[Piece]:
    """An example in pieces; what is longer than ``max_length`` is cut. Of more than ``most`` tokens the beginning, what is
    around the cut, and the end."""
    length = len(example.input_ids)
    if not length:
        return []
    spans = [(0, length)] if most is None or length <= most else _spans(length, max_length, most // 4)
    pieces: list[Piece] = []
    done = 0
    for start, end in spans:
        first, *others = _pieces(example, tokenizer, special, max_length, start, end)
        pieces += [replace(first, skipped=start - done), *others]
        done = end
    return pieces


def _spans(length: int, max_length: int, each: int) -> list[tuple[int, int]]:
    """Beginning, the cut with something on both sides, and the end, ``each`` tokens before and after; none overlaps."""
    wanted = [(0, each), (length - each, length)]
    if max_length < length:
        wanted.append((max(max_length - each, 0), min(max_length + each, length)))
    spans: list[tuple[int, int]] = []
    for start, end in sorted(wanted):
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
        else:
            spans.append((start, end))
    return spans


def _pieces(example: Example, tokenizer: Any, special: set[int], max_length: int, start: int, stop: int) -> list[Piece]:
    ids, labels = example.input_ids[:stop], example.labels[:stop]
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
    before = _decode(tokenizer, anchor)
    pieces: list[Piece] = []
    while start < len(ids):
        end = start + 1
        text = _after(tokenizer, anchor, before, ids[start:end])
        while (
            "�" in text and end < min(start + LONGEST_CHARACTER, len(ids)) and _alike(labels, special, ids, start, end, max_length)
        ):
            longer = _after(tokenizer, anchor, before, ids[start : end + 1])
            end += 1
            if "�" not in longer:
                text = longer
                break
        else:
            end = start + 1
        trained = labels[start] != IGNORE and start > 0  # the first token of a row has no predecessor that could predict it
        pieces.append(Piece(text, tuple(ids[start:end]), trained, ids[start] in special, start >= max_length))
        start = end
    return pieces


def _alike(labels: list[int], special: set[int], ids: list[int], start: int, end: int, max_length: int) -> bool:
    """Whether token ``end`` meets the same fate as ``start``, so that they can be one piece."""
    return (
        (labels[start] == IGNORE) == (labels[end] == IGNORE)
        and ids[end] not in special
        and (start >= max_length) == (end >= max_length)
    )


def _after(tokenizer: Any, anchor: list[int], before: str, ids: list[int]) -> str:
    """The text these tokens add to an earlier one; alone, many vocabularies would lose the space they begin with."""
    return _decode(tokenizer, [*anchor, *ids]).removeprefix(before)


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
