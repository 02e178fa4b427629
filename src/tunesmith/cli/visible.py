"""Text from outside, made safe to show: what a terminal would obey, or an eye not see, is spelled out."""

KEPT = "\n\u200c\u200d"
"""Not printable and kept: line ends, and the joiners that emoji and several scripts need."""


def visible(text: str) -> str:
    """The text with control characters, direction marks and odd spaces as escapes such as ``\\x1b``."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in KEPT else _escaped(c) for c in text)


def on_one_line(text: str) -> str:
    """The same, line ends as ``⏎``."""
    return visible(text.replace("\r\n", "\n").replace("\n", "⏎"))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
