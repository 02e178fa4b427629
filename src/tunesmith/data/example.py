"""One row as tokens and labels."""

from dataclasses import dataclass

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
