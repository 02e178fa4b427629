"""A chat template at work: what it makes of messages and tools, and the ways it wants them written."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.data.sandbox import Overdrawn, render
from tunesmith.errors import ModelError

Messages = list[dict[str, Any]]
Tools = Sequence[dict[str, Any]]

PROBE_NAME, PROBE_VALUE = "find_nearby_lighthouse", "saltmarsh"
PROBE_TOOL = {
    "type": "function",
    "function": {"name": PROBE_NAME, "description": "Finds.", "parameters": {"type": "object", "properties": {}}},
}
PROBE_CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "call00000", "type": "function", "function": {"name": PROBE_NAME, "arguments": {"near": PROBE_VALUE}}}],
}
OWN_EOS = "Choose another template with --chat-template, such as zephyr, which ends answers with any model's own EOS."
FOREIGN = re.compile(r"<[|｜][^\s<>]+[|｜]>|</s>|<eos>|<end_of_turn>")
"""Control tokens by their form, and ends of turns that have a plain one: a model's own template may well write ``</answer>``."""
ASKED = {"role": "user", "content": "a"}


def render_text(tokenizer: Any, messages: Messages, add_generation_prompt: bool, tools: Tools = ()) -> str:
    """The template's text for these messages. The template alone writes special tokens, so there is one BOS.

    Raises:
        ModelError: the template fails on these messages (a role it does not know, turns out of order).
    """
    from jinja2 import TemplateError, TemplateSyntaxError

    given = list(tools) or None
    try:
        template = tokenizer.get_chat_template(None, given)
        named = {**tokenizer.special_tokens_map, "add_generation_prompt": add_generation_prompt}
        return render(template, [_shown(message) for message in messages], given, **named)
    except Overdrawn as error:
        raise ModelError(
            f"The chat template was stopped: {error}, as no template has to.",
            "Do not use this model as it is; choose another template with --chat-template, such as zephyr.",
        ) from error
    except TemplateSyntaxError as error:
        raise ModelError(
            f"The chat template's line {error.lineno} is no Jinja: {(error.message or '').rstrip('.')}.",
            "Mend it, or choose another with --chat-template, such as zephyr.",
        ) from error
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        roles = " → ".join(message["role"] for message in messages)
        reason = str(error).strip().rstrip(".") or type(error).__name__
        raise ModelError(
            f"The chat template refuses a conversation of {roles}: {reason}.", "Use roles and an order that the model knows."
        ) from error


def _shown(message: dict[str, Any]) -> dict[str, Any]:
    """A message as transformers shows it to templates: nothing that is null, thoughts under the names templates know."""
    shown = {key: value for key, value in message.items() if value is not None}
    thoughts = next((shown[key] for key in ("reasoning_content", "thinking", "reasoning") if key in shown), None)
    return shown if thoughts is None else {"thinking": thoughts, **shown, "reasoning_content": thoughts}


def find_stop(tokenizer: Any, special: set[int]) -> tuple[int, str, str]:
    """The token that ends an answer, from the template itself; what the prompt adds that no answer begins with: models that
    always think are prompted with ``<think>``, which their template leaves out again once the answer stands there; and what
    follows the token where nothing follows the answer, which may be the same token once more.

    Raises:
        ModelError: answers end with no special token.
    """
    probe = [ASKED, {"role": "assistant", "content": PROBE_VALUE}]
    before, after = render_text(tokenizer, probe[:1], True), render_text(tokenizer, probe, False)
    kept = _in_common(before, after)
    if PROBE_VALUE not in after:
        raise ModelError(
            "The chat template leaves the text of an answer out, or wants it in another form than text.",
            "Choose another template with --chat-template, such as zephyr.",
        )
    tail = after.rpartition(PROBE_VALUE)[2]
    for token in tokenizer(tail, add_special_tokens=False)["input_ids"]:
        if token in special:
            ended, _, closing = tail.partition(tokenizer.convert_ids_to_tokens(token))
            _check_end(tokenizer, ended)
            return token, before[kept:], closing
    raise ModelError(
        f"The chat template ends an answer with {tail!r}, which holds no special token, so a model trained with it would "
        "never learn to stop.",
        OWN_EOS,
    )


def _check_end(tokenizer: Any, ended: str) -> None:
    """Raises ModelError if what stands between an answer and its stop token is a control token of other models."""
    vocabulary = tokenizer.get_vocab()
    foreign = next((name for name in FOREIGN.findall(ended) if name not in vocabulary), None)
    if foreign:
        raise ModelError(
            f"The chat template ends an answer with {foreign!r}, which is no token of this model but text that it would write.",
            OWN_EOS,
        )


def find_own_header(tokenizer: Any, special: set[int]) -> str:
    """What a model has to write itself before every answer: the header of its turn, where the template has no generation prompt."""
    asked, prompt = render_text(tokenizer, [ASKED], False), render_text(tokenizer, [ASKED], True)
    after = render_text(tokenizer, [ASKED, {"role": "assistant", "content": PROBE_VALUE}], False)
    header = after.removeprefix(asked).partition(PROBE_VALUE)[0] if asked == prompt else ""
    return header if set(tokenizer(header, add_special_tokens=False)["input_ids"]) & special else ""


def find_turn_tokens(tokenizer: Any, special: set[int]) -> list[str]:
    """Added tokens that open turns without being marked special, as DeepSeek's do."""
    asked, prompt = render_text(tokenizer, [ASKED], False), render_text(tokenizer, [ASKED], True)
    added = {number: name for name, number in tokenizer.get_added_vocab().items() if number not in special and name.strip()}
    opened = prompt[len(asked) :] if prompt.startswith(asked) else ""
    first = [
        number for number in tokenizer(opened, add_special_tokens=False)["input_ids"] if number in added | dict.fromkeys(special)
    ]
    found = [*tokenizer(asked, add_special_tokens=False)["input_ids"], *first[:1]]
    return sorted({added[number] for number in found if number in added})


@dataclass(frozen=True)
class CallStyle:
    """How a template wants an assistant message that calls tools. null: content is null, not empty text. written: arguments
    are JSON text, not an object."""

    null: bool
    written: bool

    def of(self, message: dict[str, Any]) -> dict[str, Any]:
        """The message in this style."""
        if not message.get("tool_calls"):
            return message
        calls = []
        for call in message["tool_calls"]:
            function = dict(call["function"])
            if self.written:
                function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
            calls.append({**call, "function": function})
        return {**message, "content": None if self.null and not message["content"] else message["content"], "tool_calls": calls}


def find_call_style(tokenizer: Any) -> CallStyle | None:
    """The first style in which the template writes a call's name, and its arguments as an object; None if there is none."""
    for style in (CallStyle(null, written) for written in (False, True) for null in (False, True)):
        tail = probe_tail(tokenizer, style)
        spoilt = f'\\"{PROBE_VALUE}' in tail or f"'{PROBE_VALUE}'" in tail  # JSON within JSON, or Python
        if PROBE_NAME in tail and PROBE_VALUE in tail and not spoilt:
            return style
    return None


def probe_tail(tokenizer: Any, style: CallStyle) -> str:
    """What the template writes for a call, nothing if it refuses."""
    try:
        before = render_text(tokenizer, [ASKED], False, [PROBE_TOOL])
        after = render_text(tokenizer, [ASKED, style.of(PROBE_CALL)], False, [PROBE_TOOL])
    except ModelError:
        return ""
    return after[_in_common(before, after) :]


def _in_common(a: str, b: str) -> int:
    """Characters both texts begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
