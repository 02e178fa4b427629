"""Examples of one shape without looking for their answers each time.

For most templates, what stands around the contents of conversations with the same roles is the same. If the trace of such a
conversation shows an answer between a control token (with a fixed head after it, such as ``assistant`` and a newline) and the
stop token, and every prompt is the beginning of the text that its answer continues, then which tokens are the answer is known
from the shape. Anything else, a head that melts into the answer's first token among it, is left to the renderer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

from tunesmith.data.render import IGNORE, Example
from tunesmith.data.token_cache import TokenCache
from tunesmith.data.trace import Trace


@dataclass(frozen=True)
class Answer:
    """piece: the number of the text's piece (as `TokenCache` cuts it) that holds an answer. head: the tokens before it."""

    piece: int
    head: list[int]


@dataclass(frozen=True)
class ExamplePlan:
    """whole: the trace of the text up to the last answer. prompts: of each answer's prompt. answers: where they are."""

    whole: Trace
    prompts: tuple[Trace, ...]
    answers: tuple[Answer, ...]

    @staticmethod
    def of(whole: Trace, prompts: Sequence[Trace], answers: Sequence[int], stop: str, tokens: TokenCache) -> "ExamplePlan | None":
        """None if the answers cannot be known from the shape.

        Args:
            answers: numbers of the messages that are answers. stop: the token that ends them.
        """
        parts = whole.parts
        slots = {part[0]: place for place, part in enumerate(parts) if not isinstance(part, str)}
        contents = list(range(answers[-1] + 1))
        if list(slots) != contents or len(slots) != sum(not isinstance(part, str) for part in parts):
            return None  # each content stands there once, in order
        before = [0, *accumulate(tokens.controls(part) if isinstance(part, str) else 0 for part in parts)]
        made = []
        for answer, prompt in zip(answers, prompts):
            place = slots[answer]
            fixed, after = parts[place - 1], parts[place + 1] if place + 1 < len(parts) else ""
            if not isinstance(fixed, str) or not isinstance(after, str) or not after.startswith(stop):
                return None
            head = tokens.tail(fixed)
            if head is None or prompt.parts != parts[:place]:
                return None
            made.append(Answer(before[place], tokens.encode([head])[0] if head else []))
        last = parts[slots[answers[-1]] + 1]
        assert isinstance(last, str)
        if last.count(stop) != 1:
            return None
        return ExamplePlan(whole, tuple(prompts), tuple(made))

    def text(self, contents: Sequence[str]) -> str | None:
        """The text of a conversation with these contents, None if this plan is not for it."""
        if not all(prompt.holds(contents) for prompt in self.prompts):
            return None
        return self.whole.text(contents)

    def example(self, pieces: Sequence[list[int]], where: str) -> Example | None:
        """The example of a text from the tokens of its pieces; None if a head melts into its answer."""
        labels: list[int] = []
        done = 0
        for answer in self.answers:
            ids, head = pieces[answer.piece], answer.head
            if ids[: len(head)] != head:
                return None
            for piece in pieces[done : answer.piece]:
                labels += [IGNORE] * len(piece)
            labels += [IGNORE] * len(head) + ids[len(head) :]
            done = answer.piece + 1
        whole = list(chain.from_iterable(pieces))
        return Example(whole, labels + [IGNORE] * (len(whole) - len(labels)), where)
