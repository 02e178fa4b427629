"""Why settings were refused, in plain words: what pydantic found, without Python's names for it."""

from collections.abc import Collection

from pydantic import ValidationError

NEEDED = {
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float"), "a whole number is needed here"),
    **dict.fromkeys(("float_parsing", "float_type"), "a number is needed here"),
    **dict.fromkeys(("bool_parsing", "bool_type"), "true or false is needed here"),
    "string_type": "text is needed here",
}
"""What is to be said of a value of a wrong type, by pydantic's names of errors."""


def explain(error: ValidationError, names: Collection[str]) -> str:
    """A sentence for each thing that is wrong. names: of the settings."""
    lines = []
    for problem in error.errors():
        loc = problem["loc"]
        mixed = loc[:1] == ("datasets",)
        name = ".".join(str(part) for part in loc if mixed or str(part) in names)
        message = NEEDED.get(problem["type"]) or problem["msg"].removeprefix("Value error, ").replace("Input should", "it should")
        message = message[0].lower() + message[1:]
        lines.append(f"{name}: {problem['input']!r} will not do: {message}." if name else f"{message}.")
    return " ".join(dict.fromkeys(lines))
