"""Lists of messages to `Message`s: role and content, as chat templates have it, or from and value, as ShareGPT has it."""

from typing import Any

from tunesmith.data.conversation import ROLES, Message
from tunesmith.data.row import ROW_LIMIT
from tunesmith.data.text import kind_of, text_of
from tunesmith.data.tool_calls import calls_of, json_of
from tunesmith.errors import RowError, nearest

SPEAKERS = {
    "system": "system", "developer": "system", "human": "user", "user": "user", "prompter": "user",
    "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "model": "assistant", "function_call": "assistant", "tool_call": "assistant",
    "tool": "tool", "observation": "tool", "function_response": "tool", "tool_response": "tool", "ipython": "tool",
}  # fmt: skip
"""Who speaks in ShareGPT's form, and the role it is."""
CALLERS = ("function_call", "tool_call")
"""Speakers whose text is a call, as JSON."""

THOUGHTS = ("reasoning_content", "reasoning", "thinking")
KEPT = {"system": ("name",), "user": ("name",), "assistant": ("name", *THOUGHTS), "tool": ("name", "tool_call_id")}
"""Fields of a message that chat templates read, by role."""
READ = frozenset(
    ("role", "content", "from", "value", "tool_calls", "function_call", "train", "weight", "name", "tool_call_id", *THOUGHTS)
)
"""Fields of a message that something is done with."""
ELSEWHERE = {
    "train_on_turn", "training", "train_detail", "training_detail", "trainable", "loss", "loss_mask", "mask", "masked", "do_train",
}  # fmt: skip
"""What other tools mark answers with that are to be learnt, or not."""


def in_rows(value: Any) -> Any:
    """The value, but a list of objects for an object of lists, as older `datasets` keep a sequence of objects in parquet."""
    lists = list(value.values()) if isinstance(value, dict) else []
    if lists and all(isinstance(one, list) for one in lists) and len({*map(len, lists)}) == 1:
        return [dict(zip(value, items)) for items in zip(*lists)]
    return value


def messages_of(value: Any, where: str, column: str) -> list[Message]:
    """The messages of a list, or of one as JSON, each checked. Raises RowError, with the message's number."""
    if isinstance(value, str):
        value = json_of(value, f"{where}: {column!r}")
    value = in_rows(value)
    if not isinstance(value, list) or not value:
        raise RowError(
            f"{where}: {column!r} is {kind_of(value)}, not a list of messages.", 'Write [{"role": "user", "content": …}, …].'
        )
    return [_plain(item) or _message(item, f"{where}, message {number}") for number, item in enumerate(value, 1)]


def turns_of(value: Any, where: str, column: str) -> list[Message]:
    """The messages of a list of [question, answer] pairs, oldest first, or of one as JSON; of nothing none. Raises RowError."""
    where = f"{where}, column {column!r}"
    if isinstance(value, str):
        value = json_of(value, where) if value.strip() else []
    if not isinstance(value or [], list):
        raise RowError(f"{where} is {kind_of(value)}, not a list of turns.", 'Write [["question", "answer"], …], or [].')
    made = []
    for number, turn in enumerate(value or [], 1):
        if not isinstance(turn, list) or len(turn) != 2:
            what = f"a list of {len(turn)}" if isinstance(turn, list) else kind_of(turn)
            raise RowError(f"{where}, turn {number} is {what}, not a pair.", 'Write ["question", "answer"].')
        made += [Message(role, text_of(text, f"{where}, turn {number}")) for role, text in zip(("user", "assistant"), turn)]
    return made


def _plain(item: Any) -> Message | None:
    """A message of a role and ASCII text alone, which most are and nothing is wrong with; others are looked at closely."""
    if not isinstance(item, dict) or len(item) != 2:
        return None
    role, content = item.get("role"), item.get("content")
    if not isinstance(content, str) or role not in ROLES or not content.isascii():
        return None
    return Message(role, content) if "\0" not in content and len(content) <= ROW_LIMIT else None


def _message(item: Any, where: str) -> Message:
    if isinstance(item, dict) and "from" in item and "role" not in item:
        return _spoken(item, where)
    if not isinstance(item, dict) or "role" not in item or not {"content", "tool_calls"} & set(item):
        raise RowError(f"{where} is not an object with role and content.", 'Write {"role": "user", "content": …}.')
    role = item["role"]
    if role not in ROLES:
        meant = SPEAKERS.get(str(role)) if role not in CALLERS else None
        raise RowError(
            f"{where}: role {role!r} is not one of {', '.join(ROLES)}{'' if meant else nearest(str(role), ROLES)}.",
            f"Rename it to {meant}." if meant else "Rename the role.",
        )
    more: dict[str, Any] = {key: text_of(item[key], f"{where}, {key}") for key in KEPT[role] if item.get(key) is not None}
    if item.get("function_call"):
        raise RowError(f"{where} has a function_call, which no chat template reads.", 'Write "tool_calls": [{"function": …}].')
    calls = calls_of(item.get("tool_calls"), f"{where}, tool_calls")
    if calls:
        _check_caller(role, where)
        more["tool_calls"] = calls
    content = "" if calls and item.get("content") is None else _content(item.get("content"), where)
    return Message(role, content, _trained(item, role, where), more)


def _content(value: Any, where: str) -> str:
    """Text, or OpenAI's list of parts, if all of them are text. Raises RowError."""
    if not isinstance(value, list) or not value:
        return text_of(value, where)
    for number, part in enumerate(value, 1):
        kind = part.get("type") if isinstance(part, dict) else f"{kind_of(part)} without a type"
        if kind is None:
            raise RowError(f"{where}, part {number} has no type.", 'Write {"type": "text", "text": …}.')
        if kind != "text":
            raise RowError(f"{where}, part {number} is {kind}, and only text can be learnt.", "Remove the part, or the row.")
    return "".join(text_of(part.get("text"), f"{where}, part {number}") for number, part in enumerate(value, 1))


def _spoken(item: dict[str, Any], where: str) -> Message:
    speaker = item["from"]
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        raise RowError(
            f"{where}: {speaker!r} is not a speaker that is known{nearest(str(speaker), SPEAKERS)}.",
            "Use human and gpt, system, tool, or function_call.",
        )
    role, value = SPEAKERS[speaker], item.get("value")
    if speaker not in CALLERS:
        return _message({**item, "role": role, "content": value}, where)
    calls = calls_of(text_of(value, where), f"{where}, value")
    if not calls:
        raise RowError(f"{where} is a {speaker} without a call.", 'Write {"name": …, "arguments": {…}} as its value.')
    return Message(role, "", _trained(item, role, where), {"tool_calls": calls})


def _check_caller(role: str, where: str) -> None:
    if role != "assistant":
        raise RowError(f"{where}: tool_calls stand in a message of {role}.", "Only the assistant calls tools.")


def _trained(item: dict[str, Any], role: str, where: str) -> bool:
    """What ``train`` or ``weight`` say: whether an answer is learnt. They can leave an answer out, not take anything else in."""
    if mark := next((key for key, given in item.items() if key in ELSEWHERE and given is not None), None):
        raise RowError(f"{where}: {mark} is another tool's mark, and is not read here.", 'Write "train": true or false.')
    train, weight = item.get("train"), item.get("weight")
    if train is not None and not isinstance(train, bool):
        raise RowError(f"{where}: train is {train!r}, not true or false.", "Write true or false.")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise RowError(f"{where}: weight is {weight!r}; an answer is learnt (1) or not (0).", "Write 0 or 1.")
    if role != "assistant" and (train or weight):
        raise RowError(
            f"{where}: it is marked to be trained, but it is {role}'s, and only answers can be.",
            "Remove the mark, or train every token with --assistant-only-loss false.",
        )
    return train is not False and weight != 0
