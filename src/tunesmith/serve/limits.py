"""How much one request, and all of them together, may take."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """body: bytes of a request. body_seconds: time for it to arrive. depth: of its JSON. render_seconds: time of the chat template.
    answer: most new tokens of an answer. usual: those of one that does not say. choices: most answers to one request.
    slots: answers that grow at a time, of each model. queue: answers that may wait besides. send_seconds: a client that takes
    nothing for so long is let go. grace: seconds that living answers have to end when the server is stopped."""

    body: int = 1_000_000
    body_seconds: float = 10
    depth: int = 64
    render_seconds: float = 10
    answer: int = 4096
    usual: int = 1024
    choices: int = 16
    slots: int = 8
    queue: int = 64
    send_seconds: float = 30
    grace: float = 5
