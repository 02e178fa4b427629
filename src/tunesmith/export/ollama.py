"""A Modelfile for Ollama: the file, the template it was trained with, where answers end and how their tokens are chosen."""

import shlex
from collections.abc import Callable
from typing import Any

TURNS = {
    "chatml": ("<|im_start|>{role}\n{content}<|im_end|>\n", "<|im_start|>assistant\n"),
    "phi3": ("<|{role}|>\n{content}<|end|>\n", "<|assistant|>\n"),
    "zephyr": ("<|{role}|>\n{content}</s>\n", "<|assistant|>\n"),
    "llama3": (
        "<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
}
"""Templates of turns that are all alike, which Ollama's own language can say: a turn, and what comes before an answer."""
CHOICE = ("PARAMETER temperature 0", "PARAMETER repeat_penalty 1")
"""Defaults that its users can change, in the file or in a request."""
WHY = (
    "# As `tunesmith chat` answers. Ollama's own are temperature 0.8, and repeat_penalty 1.1, which shuns the words of the prompt."
)
CONTEXT = 4096
"""Tokens that Ollama lets a model see if nobody says (2,048 in older versions, more on large cards in newer ones)."""
ANSWER = 1024
"""Tokens left for an answer to a prompt as long as the longest row."""
WHY_CONTEXT = "# Tokens of prompt and answer together. Ollama cuts longer ones without a word, by a limit that knows no training."
Render = Callable[[list[dict[str, Any]]], str]


def context_length(longest_row: int | None, positions: int) -> int:
    """Tokens that Ollama should let a model see: the longest row that was trained and an answer, no fewer than it does by itself,
    no more than the model can. Not all that the model can: Ollama takes memory for all of them at once.

    Args:
        longest_row: in tokens; None if that is not known. positions: tokens the model can see.
    """
    return min(positions, max(CONTEXT, (longest_row or 0) + ANSWER))


def modelfile(model: str, render: Render, bos: str, stops: list[str], context: int) -> str:
    """The text of a Modelfile. Where Ollama's language cannot say the template, it takes the one it recognises in the file itself.

    Args:
        model: name of the GGUF file beside it. render: text of messages that wait for the assistant. bos: token a
            conversation begins with, or an empty string (Ollama writes it itself). stops: texts that end an answer. context: tokens
            that prompt and answer may have; see `context_length`.
    """
    lines = [f"FROM ./{model}"]
    found = _template(render, bos)
    if found is not None:
        turn, before_answer, system = found
        go = turn.replace("{role}", "{{ .Role }}").replace("{content}", "{{ .Content }}")
        lines.append(f'TEMPLATE """{{{{ range .Messages }}}}{go}{{{{ end }}}}{before_answer}"""')
        if system:
            lines.append(f'SYSTEM """{system}"""')
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    lines += [WHY_CONTEXT, f"PARAMETER num_ctx {context}", WHY, *CHOICE]
    return "\n".join(lines) + "\n"


def modelfile_command(model: str, adapter: str | None = None) -> str:
    """The line for a shell that writes a Modelfile over files of these names, which leaves template and stops to what they hold."""
    lines = [f"FROM ./{model}", *([f"ADAPTER ./{adapter}"] if adapter else []), *CHOICE]
    return shlex.join(["printf", r"%s\n", *lines]) + " > Modelfile"


def _template(render: Render, bos: str) -> tuple[str, str, str] | None:
    """Turn, what comes before an answer, and the system prompt that is there when none is given: if this says all that the
    chat template says."""
    plain = [{"role": "user", "content": "one"}]
    talk = [*plain, {"role": "assistant", "content": "two"}, {"role": "user", "content": "three"}]
    given = [{"role": "system", "content": "zero"}, *talk]
    for turn, before_answer in TURNS.values():
        for begin in dict.fromkeys(("", bos)):

            def written(messages: list[dict[str, Any]], turn: str = turn, begin: str = begin, end: str = before_answer) -> str:
                return begin + "".join(turn.format(**message) for message in messages) + end

            text, tail = render(plain), written(plain).removeprefix(begin)
            lead = text.removesuffix(tail).removeprefix(begin)
            start, end = turn.format(role="system", content="\0").split("\0")
            system = lead[len(start) : len(lead) - len(end)] if lead.startswith(start) and lead.endswith(end) else ""
            talked = ([{"role": "system", "content": system}] if system else []) + talk
            if (render(talk), render(given)) == (written(talked), written(given)):
                return turn, before_answer, system
    return None
