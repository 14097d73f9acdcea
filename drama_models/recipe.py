"""Recipes: a stage's settings as one frozen dataclass, read from YAML, every field overridable on the command line.

    python -m pruning recover recipes/recover.yaml --steps 200

A field that the stage does not know, or a value of the wrong kind, is an error that names the field and the line.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import signal
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

from drama_models.console import run
from drama_models.errors import RecipeError
from drama_models.progress import hide_loading_bars

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

Recipe = TypeVar("Recipe")
Arguments = TypeVar("Arguments")
HELP = ("-h", "--help")
OPTIONAL_REFUSED = re.compile(r"Errors: - (?!Does not validate|Expected)(.+?) - Expected a <class 'NoneType'>")
"""What an optional dataclass says against its values, in the middle of what jsonargparse says of the types."""


def parse_recipe(recipe_class: type[Recipe], arguments: Sequence[str], *, command: str) -> Recipe:
    """Settings from `[RECIPE.yaml] [--field value …]`; later overrides win, and `--field` alone says yes.

    `--some-field` is `--some_field`: both spellings are known from other programs.

    Args:
        recipe_class: a dataclass whose fields carry docstrings; they become the text of `--help`.
        arguments: command-line words after the command.
        command: how the command is spelled, for `--help`.

    Raises:
        RecipeError: unreadable file, unknown field, wrong value, or settings that the dataclass itself refuses.
    """
    from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

    words = list(arguments)
    # The texts of `--help` are read from the source on disk. A source that was edited under a running process would
    # make jsonargparse forget the class's options without a word, so it is read for nothing else.
    set_parsing_settings(docstring_parse_attribute_docstrings=any(word in HELP for word in words))
    path = Path(words.pop(0)) if words and not words[0].startswith("-") else None
    parser = ArgumentParser(prog=f"{command} [RECIPE.yaml]", exit_on_error=False)
    parser.add_argument("--config", action="config", help="recipe to start from; usually given without the flag")
    parser.add_class_arguments(recipe_class)
    words = _with_values(recipe_class, [_with_underscores(recipe_class, word) for word in words])
    lines = _check_fields(recipe_class, path) if path else {}
    try:
        parsed = parser.parse_args(["--config", str(path), *words] if path else words)
        values = vars(parser.instantiate(parsed))
        return recipe_class(**{field.name: values[field.name] for field in fields(recipe_class)})  # type: ignore[arg-type]
    except (ArgumentError, ValueError, TypeError) as error:
        overridden = {word[2:].partition("=")[0] for word in words if word.startswith("--")}
        in_file = {name: line for name, line in lines.items() if name not in overridden}
        raise RecipeError(_explain(error, path, in_file)) from None


def run_command(
    room: str,
    commands: Mapping[str, tuple[Callable[[list[str]], str], str]],
    arguments: Sequence[str],
    *,
    interrupted: str = "the same command goes on at its last checkpoint",
) -> int:
    """Command line of a workshop room: run one command and print what it made.

    Args:
        room: its name, as in `python -m pruning`.
        commands: name to function, from command-line words to the text to print, and its purpose.
        arguments: command-line words.
        interrupted: what is said after an interruption.

    Returns:
        Exit code: 2 with one sentence for a user's mistake, 130 when interrupted.
    """
    if not arguments or arguments[0] not in commands:
        lines = [f"  {name:18} {purpose}" for name, (_, purpose) in commands.items()]
        print(f"python -m {room} COMMAND [RECIPE.yaml] [--field value ...]\n", *lines, sep="\n")  # noqa: T201
        return 0 if list(arguments[:1]) in (["-h"], ["--help"]) else 2

    def command() -> str | None:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as a room's __main__ leaves it
            signal.signal(signal.SIGINT, signal.default_int_handler)
        hide_loading_bars()
        made = commands[arguments[0]][0](list(arguments[1:]))
        return made if os.environ.get("RANK", "0") == "0" else None  # of several processes under torchrun one speaks

    return run(command, interrupted=interrupted)


def load_recipe(recipe_class: type[Recipe], path: str | Path, **overrides: object) -> Recipe:
    """Settings from a YAML file, for notebooks and tests; keyword arguments override its fields.

    Raises:
        RecipeError: as in `parse_recipe`.
    """
    texts = {
        name: str(value) if isinstance(value, str | Path) else json.dumps(value, default=str)
        for name, value in overrides.items()
    }
    words = [f"--{name}={text}" for name, text in texts.items()]
    return parse_recipe(recipe_class, [str(path), *words], command="")


def check_least(settings: object, least: Mapping[str, float]) -> None:
    """Refuse numbers below their smallest value, infinite ones, and those that are none; a field may be None.

    Args:
        settings: has the fields as attributes.
        least: smallest value by name of a field.

    Raises:
        ValueError: naming field and value.
    """
    for name, smallest in least.items():
        value = getattr(settings, name)
        if value is not None and not smallest <= value < math.inf:
            raise ValueError(f"{name}={value} must be at least {smallest}.")


def trainer_arguments(kind: type[Arguments], settings: Mapping[str, Any], trainer: Mapping[str, Any]) -> Arguments:
    """A stock trainer's own settings: those of a stage, over which a recipe's field `trainer` has the last word.

    Args:
        kind: dataclass of the stock trainer's settings.
        settings: of the stage.
        trainer: of the recipe.

    Raises:
        RecipeError: a setting of `trainer` that there is not, or that the stock trainer refuses.
    """
    known = {field.name for field in fields(kind) if field.init}  # type: ignore[arg-type]
    if unknown := sorted(trainer.keys() - known):
        close = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"it takes those of {kind.__name__}."
        raise RecipeError(f"trainer has no field {unknown[0]!r}; {hint}")
    try:
        return kind(**{**settings, **trainer})
    except (TypeError, ValueError) as error:
        raise RecipeError(f"The trainer refuses its settings: {' '.join(str(error).split())}") from None


def field_name(kind: Any, name: str) -> str:
    """A field's dotted name as the recipe has it, of one with dashes; names inside free-form dictionaries stay.

    Args:
        kind: dataclass of the recipe.
        name: as on the command line, without the dashes in front.
    """
    first, dot, rest = name.partition(".")
    first = first.replace("-", "_")
    inner = _dataclass_in(_types_of(kind).get(first))
    return first + dot + (field_name(inner, rest) if inner else rest)


def _with_underscores(recipe_class: type, word: str) -> str:
    flag, sign, value = word.partition("=")
    return f"--{field_name(recipe_class, flag[2:])}{sign}{value}" if word.startswith("--") else word


def _with_values(recipe_class: type, words: Sequence[str]) -> list[str]:
    """Command-line words where a boolean field that is named alone says `=true`."""

    def alone(word: str, following: str) -> bool:
        return word.startswith("--") and following.startswith("--") and _is_boolean(recipe_class, word[2:])

    return [f"{word}=true" if alone(word, following) else word for word, following in pairwise([*words, "--"])]


def _is_boolean(kind: Any, name: str) -> bool:
    """Whether a field, by a dotted name one of a dataclass inside, is a boolean."""
    first, _, rest = name.partition(".")
    field = _types_of(kind).get(first)
    return _is_boolean(_dataclass_in(field), rest) if rest else bool in (field, *get_args(field))


def _check_fields(recipe_class: type, path: Path) -> dict[str, int]:
    """Line of every field in the file, by dotted name; refuses names that the dataclass does not have."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"There is no recipe at {path}; pass the path of a YAML file.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid YAML: {error}") from None
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise RecipeError(f"{path} must be a mapping of fields to values, such as `steps: 100`.")
    lines = {}
    for name, line, known in _walk(root, recipe_class):
        last = name.rpartition(".")[2]
        if known is not None and last not in known:
            close = difflib.get_close_matches(last, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(sorted(known))}."
            raise RecipeError(f"{path}, line {line}: {recipe_class.__name__} has no field {name!r}; {hint}")
        lines[name] = line
    return lines


def _walk(node: yaml.MappingNode, kind: Any, prefix: str = "") -> Iterator[tuple[str, int, set[str] | None]]:
    """Dotted name, line and allowed names of every field; free-form dictionaries allow any name.

    Entries of lists are walked too, as `datasets[0].weight`; the quoted value of an entry's `name` stands for its line.
    """
    known = {field.name for field in fields(kind)} if is_dataclass(kind) else None
    types = _types_of(kind)
    for key, value in node.value:
        name, inner = f"{prefix}{key.value}", _dataclass_in(types.get(key.value))
        yield name, key.start_mark.line + 1, known
        if isinstance(value, yaml.MappingNode):
            yield from _walk(value, inner, f"{name}.")
        elif isinstance(value, yaml.SequenceNode):
            for number, entry in enumerate(value.value):
                if isinstance(entry, yaml.MappingNode):
                    yield from _walk(entry, inner, f"{name}[{number}].")
        elif prefix.endswith("].") and key.value == "name":
            yield repr(value.value), node.start_mark.line + 1, None


def _types_of(kind: Any) -> dict[str, Any]:
    """Types of a dataclass' fields; none where its module imports them for type checkers only."""
    try:
        return get_type_hints(kind) if is_dataclass(kind) else {}
    except NameError:
        return {}


def _dataclass_in(kind: Any) -> Any:
    """The dataclass in `X`, `X | None` or `list[X]`; None where there is none, or a choice of several."""
    inside = [] if get_origin(kind) is dict else [part for part in (kind, *get_args(kind)) if is_dataclass(part)]
    return inside[0] if len(inside) == 1 else None


def _explain(error: Exception, path: Path | None, lines: dict[str, int]) -> str:
    message = " ".join(str(error).split())
    refused = OPTIONAL_REFUSED.search(message)
    if refused:
        message = refused[1]
    line = _line_of(message, lines)
    return f"{path}, line {line}: {message}" if path and line else message


def _line_of(message: str, lines: dict[str, int]) -> int | None:
    """Line of what a message names: the one entry of a list with such a field, an entry by its name, or a field."""

    def told(field: str) -> bool:
        return f'"{field}"' in message or re.search(rf"(?<![\w.]){re.escape(field)}=", message) is not None

    in_lists = [name for name in lines if "]." in name and told(name.rpartition("].")[2])]
    entries = [name for name in lines if name[0] in "'\"" and name in message]
    found = in_lists if len(in_lists) == 1 else entries or [name for name in lines if told(name)]
    if not found:  # a field of a dataclass inside, which names itself as it is called there
        inner = [name for name in lines if "." in name and told(name.rpartition(".")[2])]
        found = inner if len(inner) == 1 else []
    return lines[found[-1]] if found else None
