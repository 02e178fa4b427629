"""Flags and YAML to a recipe. Every setting of `Recipe` is a flag of its name; nothing is declared twice."""

import argparse
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from tunesmith.cli.parser import Parser
from tunesmith.elsewhere import check_elsewhere
from tunesmith.errors import RecipeError
from tunesmith.recipe import ALIASES, GROUPS, Recipe, canonical_settings
from tunesmith.yaml_text import read_yaml


def add_settings(parser: argparse.ArgumentParser) -> None:
    """MODEL, DATA, a YAML file, and one flag per setting, listed in the help by group."""
    parser.add_argument("inputs", nargs="*", metavar="MODEL DATA run.yaml", help="base model, data, settings file; each optional")
    groups = {name: parser.add_argument_group(f"{name} settings") for name in GROUPS}
    for name, field in Recipe.model_fields.items():
        extra: Any = field.json_schema_extra
        shown = str(field.default).lower() if isinstance(field.default, bool) else field.default
        default = "" if field.default is None else f" [{shown}]".replace("%", "%%")
        groups[extra["group"]].add_argument(
            f"--{name.replace('_', '-')}", metavar=_values(field.annotation), dest=name, help=(field.description or "") + default
        )


def _values(kind: Any) -> str:
    """What a setting's value may be, for its help: the words, or N for a number and VALUE for anything else."""
    if kind is bool:
        return "true|false"
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    if kind in (int, float, int | None, float | None):
        return "N"
    return "true|false|auto" if kind == SWITCH_OR_AUTO else "VALUE"


def parse(command: str, description: str, arguments: list[str], *, begins: bool = True) -> tuple[Recipe, list[str]]:
    """The recipe of a command's arguments, and a line for every setting that was given under another tool's name, or if no data
    was named. begins: see `check_recipe`.

    Raises:
        RecipeError: see `read_settings`. RunError, ModelError, DataError: see `check_recipe`.
    """
    usage = f"tunesmith {command} [MODEL] [DATA] [run.yaml] [--setting VALUE …]"
    parser = Parser(prog=f"tunesmith {command}", usage=usage, description=description)
    add_settings(parser)
    aliases: list[str] = []
    recipe = read_settings(parser, arguments, aliases.append)

    from tunesmith.places import check_recipe

    check_recipe(recipe, begins=begins)
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
    mixture = "datasets"
    files = [word for word in words if word.endswith((".yaml", ".yml"))]
    for file in files:
        try:
            read = Recipe.read(Path(file))
            _check_elsewhere(read, arguments)
            settings.update(canonical_settings(read, echo))
            mixture = f"datasets in {file}" if "datasets" in read else mixture
        except RecipeError as error:
            if file in error.what:
                raise
            raise RecipeError(f"{file}: {error.what}", error.fix) from error
    names = [word for word in words if word not in files]
    if len(names) > 2:
        raise RecipeError(f"Too many names: {' '.join(names)}.", "Give one MODEL and one DATA; settings begin with --.")
    settings.update(zip(("model_name_or_path", "dataset_name"), names))
    for key, value in flags:
        _check_elsewhere({key: value}, arguments)
        settings.update(canonical_settings({key: value}, echo))
    return Recipe.of(settings, mixture=mixture)


def _check_elsewhere(settings: Mapping[str, Any], arguments: list[str]) -> None:
    """Raises RecipeError for a setting that another tool has; it knows the command to type instead from the arguments."""
    for key, value in settings.items():
        rest = [word for name, _, words in settings_in(arguments) if name != key for word in words]
        check_elsewhere(key, value, shlex.join(rest))


def _split(parser: argparse.ArgumentParser, arguments: list[str]) -> tuple[list[str], list[tuple[str, Any]]]:
    """Words that stand alone, and (setting, value) pairs."""
    words: list[str] = []
    flags: list[tuple[str, Any]] = []
    for key, value, (word, *_) in settings_in(arguments):
        if word in ("-h", "--help"):
            parser.print_help()
            raise SystemExit(0)
        if key:
            flags.append((key, _value(key, _switched_on(key) if value is None else value)))
        elif len(word) > 1 and word.startswith("-"):
            raise RecipeError(f"There is no setting {word!r}: all begin with two dashes.", f"`{parser.prog} --help` lists them.")
        else:
            words.append(word)
    return words, flags


def settings_in(arguments: list[str]) -> Iterator[tuple[str, str | None, list[str]]]:
    """The arguments one after another: a setting's name as it was typed, its value if it has one, and the one or two words that
    say so. A word that stands alone has no name."""
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        flag = word.startswith("--")
        key, equals, value = word.removeprefix("--").partition("=")
        if not flag and not (equals and key.isidentifier()):
            yield "", None, [word]
        elif flag and key.startswith(("no-", "no_")):
            yield key[3:], "false", [word]
        elif equals:
            yield key, value, [word]
        elif rest and _takes(key, rest[0]):
            yield key, rest[0], [word, rest.pop(0)]
        else:
            yield key, None, [word]


SWITCHED = ("true", "false", "yes", "no", "on", "off")
SWITCH_OR_AUTO = bool | Literal["auto"]


def _takes(key: str, word: str) -> bool:
    """Whether the word after a flag is its value: not the next flag, and after a switch only true, false and the like."""
    if word.startswith("--"):
        return False
    words = {bool: SWITCHED, SWITCH_OR_AUTO: (*SWITCHED, "auto")}.get(_kind(key))
    return words is None or word.lower() in words


def _switched_on(key: str) -> str:
    """What a flag without a value means. Raises RecipeError if it needs one."""
    name = ALIASES.get(key.replace("-", "_"))
    if name is None or name == "packing" or _kind(key) in (bool, SWITCH_OR_AUTO):
        return "true"
    default = Recipe.model_fields[name].default
    raise RecipeError(f"--{key} has no value.", f"Give it one, such as --{key} {'VALUE' if default is None else default}.")


def _kind(key: str) -> Any:
    if key.replace("-", "_") in ("lora_target_linear", "dry_run", "dryrun"):
        return bool  # axolotl's switch for all of them, which by other names is a list; and one that has to leave the model alone
    name = ALIASES.get(key.replace("-", "_"))
    return Recipe.model_fields[name].annotation if name else None


def _value(key: str, text: str) -> Any:
    """A flag's value as YAML would read it; 3e-4, which YAML takes for text, is left to the recipe's own types."""
    if _kind(key) in (str, str | None):
        return text  # as typed: a folder may be called 2024, a column "no"
    try:
        return read_yaml(text)
    except ValueError as error:
        raise RecipeError(f"--{key} {text!r} cannot be read.", "Put it in quotes.") from error
