"""Tools and calls of them, in the forms data sets write them, to the one form chat templates read (OpenAI's).

Tool:  ``{"type": "function", "function": {"name": …, "description": …, "parameters": JSON schema}}``
Call:  ``{"type": "function", "function": {"name": …, "arguments": object}}``, with ``id`` if it had one
"""

from math import isfinite
from typing import Any

from tunesmith.data.strict_json import StrictJson
from tunesmith.data.text import kind_of, text_of
from tunesmith.errors import RowError


def tools_of(value: Any, where: str) -> tuple[dict[str, Any], ...]:
    """A row's tools: a list of schemas, or the same as JSON text. Raises RowError."""
    listed = _listed(value, where)
    return tuple(_tool(item, f"{where}, tool {number}") for number, item in enumerate(listed, 1))


def calls_of(value: Any, where: str) -> list[dict[str, Any]]:
    """The calls of one assistant message: a list, one call alone, or the same as JSON text. Raises RowError."""
    listed = _listed(value, where)
    return [_call(item, f"{where}, call {number}") for number, item in enumerate(listed, 1)]


def _listed(value: Any, where: str) -> list[Any]:
    if isinstance(value, str) and value.strip():
        value = json_of(value, where)
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise RowError(f"{where} is {kind_of(value)}, not a list.", "Write a list of objects.")
    return value


def json_of(text: str, where: str) -> Any:
    """What a cell or a message holds as JSON text. Raises RowError."""
    decoder = StrictJson()
    try:
        value, problem = decoder.decode(text), decoder.problem
    except (ValueError, RecursionError) as error:
        problem = getattr(error, "msg", "") or str(error)
    if problem:
        raise RowError(f"{where} is text that is not JSON: {problem}.", "Write a JSON object or list, in double quotes.")
    return value


def _function(item: Any, where: str) -> dict[str, Any]:
    """The object with the name in it, whether or not it stands inside ``function``."""
    function = item.get("function", item) if isinstance(item, dict) else item
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise RowError(f"{where} has no name.", 'Write {"name": …}.')
    return function


def _tool(item: Any, where: str) -> dict[str, Any]:
    function = {key: _checked(value, where) for key, value in _function(item, where).items()}
    # Templates read these two of every tool.
    return {"type": "function", "function": {"description": "", "parameters": {"type": "object", "properties": {}}, **function}}


def _call(item: Any, where: str) -> dict[str, Any]:
    function = _function(item, where)
    arguments = function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = json_of(arguments, f"{where}, its arguments") if arguments.strip() else {}
    if not isinstance(arguments, dict):
        raise RowError(f"{where}: its arguments are {kind_of(arguments)}, not an object.", 'Write {"city": "Paris"}.')
    call = {"type": "function", "function": {"name": text_of(function["name"], where), "arguments": _checked(arguments, where)}}
    return {"id": text_of(item["id"], where), **call} if item.get("id") else call


def _checked(value: Any, where: str) -> Any:
    """The value, if all its texts are text and the rest of it is what JSON has, which parquet goes beyond. Raises RowError."""
    if isinstance(value, str):
        return text_of(value, where)
    if isinstance(value, dict):
        return {text_of(key, where): _checked(item, where) for key, item in value.items()}
    if isinstance(value, list):
        return [_checked(item, where) for item in value]
    if value is None or isinstance(value, int) or (isinstance(value, float) and isfinite(value)):
        return value
    found = str(value) if isinstance(value, float) else kind_of(value)
    raise RowError(f"{where} holds {found}, and JSON has no such value.", "Write it as text.")
