"""Flags and YAML to a recipe. Every setting of `Recipe` is a flag of its name; nothing is declared twice."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from tunesmith.cli.parser import Parser
from tunesmith.errors import RecipeError
from tunesmith.recipe import ALIASES, GROUPS, Recipe, canonical_settings
from tunesmith.yaml_text import read_yaml


def add_settings(parser: argparse.ArgumentParser) -> None:
    """MODEL, DATA, a YAML file, and one flag per setting, listed in the help by group."""
    parser.add_argument("inputs", nargs="*", metavar="MODEL DATA run.yaml", help="base model, data, settings file; each optional")
    groups = {name: parser.add_argument_group(f"{name} settings") for name in GROUPS}
    for name, field in Recipe.model_fields.items():
        extra: Any = field.json_schema_extra
        default = "" if field.default is None else f" [{field.default}]".replace("%", "%%")
        groups[extra["group"]].add_argument(
            f"--{name.replace('_', '-')}", metavar="VALUE", dest=name, help=(field.description or "") + default
        )


def parse(command: str, description: str, arguments: list[str]) -> tuple[Recipe, list[str]]:
    """The recipe of a command's arguments, and a line for every setting that was given under another tool's name, or if no data
    was named.

    Raises:
        RecipeError: see `read_settings`.
    """
    usage = f"tunesmith {command} [MODEL] [DATA] [run.yaml] [--setting VALUE …]"
    parser = Parser(prog=f"tunesmith {command}", usage=usage, description=description)
    add_settings(parser)
    aliases: list[str] = []
    recipe = read_settings(parser, arguments, aliases.append)
    if not recipe.model_fields_set & {"dataset_name", "datasets"}:
        aliases.append(f"No DATA was given: this is about the bundled {recipe.dataset_name} sentences")
    return recipe, aliases


def read_settings(parser: argparse.ArgumentParser, arguments: list[str], echo: Callable[[str], None]) -> Recipe:
    """The recipe of a command line: YAML first, then MODEL and DATA, then flags, each winning over the one before.

    Flags may be written --learning-rate, --learning_rate or learning_rate=…, under any tool's name.

    Raises:
        RecipeError: an unknown flag or setting, a flag without its value, or a wrong value.
    """
    words, flags = _split(parser, arguments)
    settings: dict[str, Any] = {}
    files = [word for word in words if word.endswith((".yaml", ".yml"))]
    for file in files:
        settings.update(canonical_settings(Recipe.read(Path(file)), echo))
    names = [word for word in words if word not in files]
    if len(names) > 2:
        raise RecipeError(f"Too many names: {' '.join(names)}.", "Give one MODEL and one DATA; settings begin with --.")
    settings.update(zip(("model_name_or_path", "dataset_name"), names))
    for key, value in flags:
        settings.update(canonical_settings({key: value}, echo))
    return Recipe.of(settings)


def _split(parser: argparse.ArgumentParser, arguments: list[str]) -> tuple[list[str], list[tuple[str, Any]]]:
    """Words that stand alone, and (setting, value) pairs."""
    words: list[str] = []
    flags: list[tuple[str, Any]] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word in ("-h", "--help"):
            parser.print_help()
            raise SystemExit(0)
        if word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            if key.startswith(("no-", "no_")):
                key, value = key[3:], "false"
            elif not equals:
                value = rest.pop(0) if rest and _takes(key, rest[0]) else "true"
            flags.append((key, _value(key, value)))
        elif "=" in word and word.partition("=")[0].isidentifier():
            key, _, value = word.partition("=")
            flags.append((key, _value(key, value)))
        else:
            words.append(word)
    return words, flags


SWITCHED = ("true", "false", "yes", "no", "on", "off")
SWITCH_OR_AUTO = bool | Literal["auto"]


def _takes(key: str, word: str) -> bool:
    """Whether the word after a flag is its value: not the next flag, and after a switch only true, false and the like."""
    if word.startswith("--"):
        return False
    words = {bool: SWITCHED, SWITCH_OR_AUTO: (*SWITCHED, "auto")}.get(_kind(key))
    return words is None or word.lower() in words


def _kind(key: str) -> Any:
    name = ALIASES.get(key.replace("-", "_"))
    return Recipe.model_fields[name].annotation if name else None


def _value(key: str, text: str) -> Any:
    """A flag's value as YAML would read it; 3e-4, which YAML takes for text, is left to the recipe's own types."""
    if _kind(key) in (str, str | None) and text != "true":
        return text  # as typed: a folder may be called 2024, a column "no"
    try:
        return read_yaml(text)
    except ValueError as error:
        raise RecipeError(f"--{key} {text!r} cannot be read.", "Put it in quotes.") from error
