"""Where messages are typed: prompt_toolkit's line editor, for several lines, with history and pasting."""

from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import Output

from tunesmith.cli.chat_history import PASTE, open_history

LONG_PASTE = 10_000
"""Characters from which a paste stands as one word in the editor: it is sent whole, but not drawn."""


class Editor:
    """Reads messages.

    Args:
        history: the file of earlier ones. commands: names that Tab completes after a ``/``.
    """

    def __init__(self, history: Path, commands: list[str], typed: Input | None = None, drawn: Output | None = None) -> None:
        self.pastes: dict[str, str] = {}
        self.session: PromptSession[str] = PromptSession(
            history=open_history(history), multiline=True, key_bindings=self._keys(), prompt_continuation="  ",
            completer=WordCompleter([f"/{name}" for name in commands], sentence=True), complete_while_typing=False,
            enable_suspend=True, input=typed, output=drawn,
        )  # fmt: skip

    def read(self, who: str) -> str:
        """The next message. who: stands before it.

        Raises:
            EOFError: Ctrl-D on an empty line. KeyboardInterrupt: Ctrl-C.
        """
        prompt: StyleAndTextTuples = [("", who), ("bold", "> ")]
        text = self.session.prompt(prompt)
        for word, paste in self.pastes.items():
            text = text.replace(word, paste)
        return text

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()

        @keys.add("enter")
        def send(event: KeyPressEvent) -> None:
            event.current_buffer.validate_and_handle()

        @keys.add("escape", "enter")
        @keys.add("c-j")
        def new_line(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        @keys.add(Keys.BracketedPaste)
        def paste(event: KeyPressEvent) -> None:
            text = event.data.replace("\r\n", "\n").replace("\r", "\n")
            if len(text) > LONG_PASTE:
                word = PASTE.format(number=len(self.pastes) + 1, length=len(text))
                self.pastes[word] = text
                text = word
            event.current_buffer.insert_text(text)

        return keys
