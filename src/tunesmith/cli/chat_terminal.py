"""A talk on a terminal: messages in, answers drawn as they come. Ctrl-C stops an answer, never the talk."""

import signal
from types import FrameType

from rich.console import Console
from rich.text import Text

from tunesmith.cli.chat_drawing import draw, quiet_keys
from tunesmith.cli.chat_editor import Editor
from tunesmith.cli.chat_session import BASE, Asked, Chat, Quit, Told
from tunesmith.cli.chat_text import shown
from tunesmith.errors import TunesmithError
from tunesmith.training.guard import ran_out_of_memory


class Terminal:
    """Holds a talk.

    Args:
        editor: where messages come from. console: where answers go.
    """

    def __init__(self, chat: Chat, editor: Editor, console: Console) -> None:
        self.chat, self.editor, self.console = chat, editor, console
        self.answering = self.stopped = False

    def talk(self) -> None:
        """Until the user leaves."""
        before = signal.signal(signal.SIGINT, self._on_interrupt)
        try:
            while self._turn():
                pass
        finally:
            signal.signal(signal.SIGINT, before)

    def _turn(self) -> bool:
        """One line of the user and what comes of it; False if it was to leave."""
        try:
            line = self.editor.read(BASE if self.chat.who == (BASE,) and self.chat.adapter else "")
        except EOFError:
            return False
        except KeyboardInterrupt:
            self._note("Ctrl-D or /quit ends the talk; Ctrl-C stops an answer")
            return True
        if not line.strip():
            return True
        try:
            match self.chat.take(line):
                case Quit():
                    return False
                case Told(text):
                    self._note(text)
                case Asked() as asked:
                    self._answer(asked)
        except TunesmithError as error:
            told = Text.assemble((shown(error.what), "red"), " ", (shown(error.fix), "bold"))
            self.console.print(told, soft_wrap=True)
        return True

    def _answer(self, asked: Asked) -> None:
        self.answering, self.stopped = True, False
        try:
            with quiet_keys():
                draw(asked, self.console, lambda: self.stopped)
        except KeyboardInterrupt as interrupt:
            if type(interrupt) is not KeyboardInterrupt:  # SIGTERM: it ends everything
                raise
        except (MemoryError, RuntimeError) as error:
            if not ran_out_of_memory(error):
                raise
            self._note("memory ran out: shorter talks take less, /new begins one")
        finally:
            self.answering = False
        self._note(self.chat.keep(asked))

    def _note(self, text: str) -> None:
        self.console.print(Text(shown(text), "dim"))

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        """The first one lets the token that is being made come to its end; the second does not wait for it."""
        if self.answering and self.stopped:
            raise KeyboardInterrupt
        self.stopped = self.answering
