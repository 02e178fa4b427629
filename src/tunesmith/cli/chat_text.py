"""A model's text on its way to a terminal: control characters spelled out, thoughts told from what is said."""

import unicodedata
from collections.abc import Iterator

from tunesmith.cli.visible import visible
from tunesmith.generate.text_stream import begun

OPENS, CLOSES = "<think>", "</think>"
"""What models that think write around their thoughts."""


def shown(text: str) -> str:
    """The text with what a terminal would obey, or an eye not see, as escapes; tabs and spaces of all widths are kept."""
    if text.isprintable():
        return text
    text = text.replace("\r\n", "\n")
    return "".join(c if c == "\t" or unicodedata.category(c) == "Zs" else visible(c) for c in text)


class Thoughts:
    """Tells thoughts in streamed text from what is said. inside: whether the text begins within a thought."""

    def __init__(self, inside: bool = False) -> None:
        self.inside, self.held = inside, ""

    def add(self, piece: str) -> Iterator[tuple[str, bool]]:
        """What is certain of the text so far, and whether it is thought; tags belong to the thought. What may be the
        beginning of a tag is held back."""
        text = self.held + piece
        self.held = ""
        while text:
            tag = CLOSES if self.inside else OPENS
            before, found, rest = text.partition(tag)
            if not found:
                kept = begun(text, tag)
                before, self.held = text[: len(text) - kept], text[len(text) - kept :]
                if before:
                    yield before, self.inside
                return
            if self.inside:
                yield before + tag, True
            else:
                if before:
                    yield before, False
                yield tag, True
            self.inside, text = not self.inside, rest

    def close(self) -> Iterator[tuple[str, bool]]:
        """What was held back, once nothing follows."""
        if self.held:
            yield self.held, self.inside
        self.held = ""
