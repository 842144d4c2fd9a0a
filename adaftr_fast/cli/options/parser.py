"""The parser of the commands, and the options that derive from ``RunConfig``."""

from __future__ import annotations

import os
import re
import sys
from argparse import Action, _SubParsersAction
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

import jsonargparse

from adaftr_fast.cli.options.help import HelpFormatter, arranged
from adaftr_fast.config import ModelConfig, RunConfig
from adaftr_fast.config.presets import PRESETS, preset
from adaftr_fast.config.run import SECTIONS
from adaftr_fast.errors import ConfigError

EVERY_SECTION = tuple(SECTIONS)
CLASS, PRESET = "--model.class", "--model.preset"
REQUIRED, UNKNOWN = "the following arguments are required: ", "unrecognized arguments: "  # of jsonargparse
MISMATCH = re.compile(
    r"""Parser key "(\S+)": Expected a (?:<class '(\w+)'>|typing\.Literal\[(.+?)\])\. Got value: (.*)"""
)
KINDS = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "list": "a list such as '[8, 4]' or '[\"a\", \"b\"]'",
    "dict": "a JSON object such as '{\"a\": 1}'",
}


class _Preset(Action):
    """Sets the options of a preset."""

    def __call__(self, parser: Any, namespace: Any, value: Any, option_string: str | None = None) -> None:
        _set_model(namespace, preset(value))


class Parser(jsonargparse.ArgumentParser):
    """A parser that reports errors in one line, and whose help has the options that matter first."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **({"formatter_class": HelpFormatter} | options))

    def format_help(self, *formatter: Any) -> str:
        """Returns the help text."""
        groups = self._action_groups
        self._action_groups = arranged(groups)  # type: ignore[assignment]
        try:
            text: str = super().format_help(*formatter)
        finally:
            self._action_groups = groups
        return text

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the name of the command and the message, and exits with status 2.

        A missing option is named as it is typed, and beside one that is unknown stands the nearest.
        """
        if message.startswith(REQUIRED):
            command, _, _ = message.removeprefix(REQUIRED).partition(".")
            self._commands()[command]._report_missing(message.removeprefix(REQUIRED).split(", "))
        if message.startswith(UNKNOWN):
            message += self._hint(message.removeprefix(UNKNOWN).split())
        self.exit(2, f"{self._name()}: {_plain(' '.join(message.split()))}\n")

    def _name(self) -> str:
        return self.prog.replace(" [options]", "")

    def _commands(self) -> dict[str, Parser]:
        return next(dict(action.choices) for action in self._actions if isinstance(action, _SubParsersAction))

    def _report_missing(self, keys: list[str]) -> NoReturn:
        """Reports required arguments that are missing, given as ``command.name``."""
        missing = [key.partition(".")[2] for key in keys]
        names = [_typed(action) for action in self._actions if action.dest in missing]
        self.exit(2, f"{self._name()}: {REQUIRED}{', '.join(names)}\n")

    def _hint(self, words: list[str]) -> str:
        """Returns the option whose last part is nearest to that of the first unknown one, as a question."""
        options = [name for name in self._option_string_actions if name.startswith("--") and not name.endswith("+")]
        by_part = {_last_part(name): name for name in options}
        unknown = next((word for word in words if word.startswith("--")), "")
        near = get_close_matches(_last_part(unknown), by_part, 1)
        return f" (did you mean {by_part[near[0]]}?)" if near else ""

    def parse_path(self, cfg_path: Any, *arguments: Any, **options: Any) -> jsonargparse.Namespace:
        """Parses a configuration file; one that is not text, or nested too deeply, is an error in one line."""
        try:
            found = super().parse_path(cfg_path, *arguments, **options)
        except (ValueError, OverflowError) as error:  # such as UnicodeDecodeError, or an integer beyond floats
            self.error(f"{cfg_path}: not a TOML file of options: {error}")
        except RecursionError:
            self.error(f"{cfg_path}: nested too deeply")
        try:
            name = found.get("model.preset")
            chosen = {} if name is None else preset(name)
        except ConfigError as error:
            self.error(f"{cfg_path}: {error}")
        _set_model(found, {key: value for key, value in chosen.items() if f"model.{key}" not in found})
        if name is not None:
            del found["model.preset"]
        return found


def _plain(message: str) -> str:
    """Returns jsonargparse's message about the type of a value in the words of ``ConfigError``."""
    if (found := MISMATCH.fullmatch(message)) is None:
        return message
    option, kind, choices, value = found.groups()
    expected = KINDS.get(kind, kind) if kind else f"one of {choices.replace(chr(39), '')}"
    return f"{option}: expected {expected}, got {value}"


def add_config(parser: Parser, sections: Sequence[str] = EVERY_SECTION, help: str | None = None) -> None:
    """Adds ``--config`` and an option ``--section.name`` for every option of ``sections``."""
    parser.add_argument("--config", action="config", help="a TOML file; options after it override its values")
    for name in sections:
        parser.add_argument(f"--{name}", type=SECTIONS[name], default=SECTIONS[name](), help=help)
    if "model" in sections:
        _add_alias(parser, "--model.name", CLASS)
        text = f"options of the model: {' or '.join(PRESETS)}; options after it override them"
        parser.add_argument(PRESET, action=_Preset, choices=[*PRESETS], metavar="NAME", help=text)


def read_config(arguments: jsonargparse.Namespace, sections: Sequence[str] = EVERY_SECTION) -> RunConfig:
    """Returns the configuration of the options that ``add_config`` added; other sections have their defaults."""
    for name in sections:
        if not isinstance(arguments[name], jsonargparse.Namespace):
            raise ConfigError(f"{name}: expected a table of options, got {arguments[name]!r}")
    options = {name: arguments[name].as_dict() for name in sections}
    if options.get("model", {}).pop("preset", None) is not None:  # within a value of --model
        raise ConfigError(f"model.preset: expected {PRESET} NAME")
    config = RunConfig().with_options(**options)
    if config.model.is_own:
        _search_current_directory()
    return config


def add_class(parser: Parser) -> None:
    """Adds ``--model.class``, by which the user agrees to import the class of a run."""
    help = "the class of the run's model as module:Class, if it is one of your own; it is imported"
    parser.add_argument(CLASS, type=str | None, dest="model_class", metavar="CLASS", help=help)


def read_class(arguments: jsonargparse.Namespace) -> str | None:
    """Returns the class that ``add_class`` asks for."""
    name: str | None = arguments.model_class
    if name is not None:
        ModelConfig(name=name)  # raises an error if it cannot be a name
        _search_current_directory()
    return name


def _set_model(namespace: Any, options: dict[str, Any]) -> None:
    for name, value in options.items():
        namespace[f"model.{name}"] = value


def _typed(action: Action) -> str:
    """Returns an argument as the user types it."""
    return action.option_strings[0] if action.option_strings else str(action.metavar or action.dest)


def _last_part(word: str) -> str:
    """Returns ``lr`` of ``--optimizer.lr=0.1``."""
    return word.partition("=")[0].lstrip("-").rpartition(".")[2].replace("-", "_")


def _add_alias(parser: Parser, option: str, alias: str) -> None:
    """Gives an option another name. A field of a dataclass cannot be called "class"."""
    action = parser._option_string_actions[option]
    action.option_strings.append(alias)  # type: ignore[attr-defined]
    parser._option_string_actions[alias] = action


def _search_current_directory() -> None:
    """Lets modules be imported from the current directory, as ``python -m`` does, once the user has named one."""
    if (folder := os.getcwd()) not in sys.path:
        sys.path.insert(0, folder)
