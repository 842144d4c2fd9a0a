"""The parser of the commands, and the options that several commands have."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from argparse import SUPPRESS, Action
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from operator import attrgetter
from pathlib import Path
from types import NoneType
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    NamedTuple,
    NoReturn,
    get_args,
    get_origin,
    get_type_hints,
)

import docstring_parser
import jsonargparse

from adaftr_fast._json import dumps
from adaftr_fast.config import ModelConfig, RunConfig, TrainingConfig, WarmStartConfig
from adaftr_fast.config.model import PRESETS, preset
from adaftr_fast.config.run import SECTIONS
from adaftr_fast.errors import ConfigError

if TYPE_CHECKING:
    from adaftr_fast.engines import Engine

WIDTH, COLUMN = 110, 30  # the widest line, and the last column at which texts begin
FIRST = (
    "name",
    "dataset",
    "files",
    "out",
    "trials",
    "space",
    "config",
    "data.folder",
    "model.name",
    "model.embedding_dim",
    "model.tower_hidden",
    "optimizer.lr",
    "training.batch_size",
    "training.max_epochs",
    "training.device",
)


class Entry(NamedTuple):
    """What a help text says of an option, an argument or a command.

    Attributes:
        key: the name of its value among the parsed arguments.
        typed: how it is typed, with what stands for its value.
        text: its description.
        required: whether a command needs it.
    """

    key: str
    typed: str
    text: str
    required: bool = False


@dataclass
class Group:
    """Entries under a title."""

    title: str
    description: str = ""
    entries: list[Entry] = field(default_factory=list)


def help_text(name: str, description: str, groups: list[Group], example: str = "") -> str:
    """Returns the help text of a command; an example stands at its end."""
    width = min(max(shutil.get_terminal_size().columns, 2 * COLUMN), WIDTH) - 2
    entries = [each for group in groups for each in group.entries]
    column = min(max(len(each.typed) for each in entries) + 4, COLUMN)
    usage = " ".join(
        [f"usage: {name}", *(each.typed for each in entries if each.required), "[options]"]
    )
    blocks = [textwrap.fill(usage, width, subsequent_indent="  ", break_long_words=False)]
    blocks.append(textwrap.fill(description, width))
    for group in filter(attrgetter("entries"), _arranged(groups)):
        lines = [f"{group.title}:"]
        if group.description:
            lines += [textwrap.indent(textwrap.fill(group.description, width - 2), "  "), ""]
        for each in group.entries:
            head = f"  {each.typed}".ljust(column)
            if len(head) > column or head[-2:] != "  ":
                lines.append(head.rstrip())
                head = " " * column
            lines.append(
                textwrap.fill(each.text, width, initial_indent=head, subsequent_indent=" " * column)
            )
        blocks.append("\n".join(lines))
    if example:
        blocks.append(f"example:\n{textwrap.indent(example, '  ')}")
    return "\n\n".join(blocks) + "\n"


def _arranged(groups: list[Group]) -> list[Group]:
    """Puts the options that matter first before the others of each group, if there are options of a
    run.
    """
    known = {each.key: each for group in groups for each in group.entries}
    if "training.device" not in known:
        return groups
    first = [known[key] for key in FIRST if key in known]
    others = [
        Group(each.title, each.description, [e for e in each.entries if e not in first])
        for each in groups
    ]
    others[0].title = "other options"
    return [
        Group("the options that matter first", entries=first),
        *(each for each in others if each.entries),
    ]


# of jsonargparse
REQUIRED, UNKNOWN = "the following arguments are required: ", "unrecognized arguments: "
MISMATCH = re.compile(
    r"""Parser key "(\S+)": Expected a (?:<class '(\w+)'>|typing\.Literal\[(.+?)\])\. Got value: (.*)"""
)
EVERY_SECTION = tuple(SECTIONS)
PRESET = "--model.preset"
# other commands have the former; jsonargparse knows it as the section
DATA, FOLDER = "--data", "--data.folder"
# another name of --model.name, as a field of a dataclass cannot be called "class"
CLASS = "--model.class"
GRACE_SECONDS = 60.0  # in which an interrupted run saves a snapshot
EXPECTED = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "list": "a list such as '[8, 4]' or '[\"a\", \"b\"]'",
    "dict": "a JSON object such as '{\"a\": 1}'",
}


def place(text: str) -> str:
    """The type of a path or a URL of a store, which the functions that commands call parse."""
    return text


KINDS: dict[object, str] = {
    int: "N",
    float: "X",
    bool: "{true,false}",
    list: "[ITEM,...]",
    dict: "JSON",
    Path: "PATH",
    place: "PATH",
}


class Parser(jsonargparse.ArgumentParser):
    """A parser that reports errors in one line, and whose help has the options that matter first.

    Attributes:
        described: what the help says of the options, by group; the first group has those of no
            other.
        example: lines at the end of the help.
        commands: the parsers of the subcommands.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.described = [Group("options")]
        self.example = ""
        self._group = self.described[0]
        self.commands: dict[str, Parser] = {}
        super().__init__(*arguments, **options)

    def add_argument(self, *names: str, **options: Any) -> Any:
        """Adds an argument as jsonargparse does, in the present group of the help."""
        return self._add(self._group, names, options)

    def start_group(self, title: str, description: str = "") -> None:
        """Puts the arguments that are added from now on into a group of their own in the help."""
        self._group = Group(title, description)
        self.described.append(self._group)

    def add_section(self, section: Any, prefix: str = "", required: Sequence[str] = ()) -> None:
        """Adds an option ``--<prefix><name>`` for each field of a dataclass, in a group of their
        own.

        Args:
            section: an object with the defaults. The docstring of its class is the title of the
                group, and those of its fields are help texts.
            prefix: what precedes each name.
            required: the fields without a default.
        """
        about = docstring_parser.parse_from_object(type(section))
        title, _, rest = (about.short_description or "").rstrip(".").partition(". ")
        self.described.append(Group(title, rest))
        hints = get_type_hints(type(section))
        for each in about.params:
            name = each.arg_name
            options = {"type": hints[name], "help": each.description}
            options |= (
                {"required": True} if name in required else {"default": getattr(section, name)}
            )
            names = (
                (f"--{prefix}{name}", CLASS)
                if prefix + name == "model.name"
                else (f"--{prefix}{name}",)
            )
            self._add(self.described[-1], names, options)

    def _add(self, group: Group, names: tuple[str, ...], options: dict[str, Any]) -> Action:
        action = super().add_argument(*names, **options)
        if action.help != SUPPRESS:
            group.entries.append(_entry(action, options.get("type")))
        return action

    def spelled_out(self, words: Sequence[str]) -> list[str]:
        """Returns arguments with ``--data.folder`` in place of ``--data`` where the command has
        that option.
        """
        command = next((self.commands[word] for word in words if word in self.commands), None)
        if command is None or "data.folder" not in command._names():
            return list(words)
        return [
            FOLDER + word.removeprefix(DATA) if word.partition("=")[0] == DATA else word
            for word in words
        ]

    def format_help(self, *_: Any) -> str:
        """Returns the help text."""
        commands = [
            Entry(name, name, (each.description or "").rstrip("."))
            for name, each in self.commands.items()
        ]
        groups = [Group("commands", "", commands), *self.described] if commands else self.described
        name = f"{self._name()}{' COMMAND' if commands else ''}"
        return help_text(name, self.description or "", groups, self.example)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the name of the command and the message, and exits with status 2.

        A missing option is named as it is typed, and beside one that is unknown stands the nearest.
        """
        if message.startswith(REQUIRED):
            keys = [key.partition(".") for key in message.removeprefix(REQUIRED).split(", ")]
            self.commands[keys[0][0]]._report_missing([key for _, _, key in keys])
        if message.startswith(UNKNOWN):
            message += self._hint(message.removeprefix(UNKNOWN).split())
        self.exit(2, f"{self._name()}: {_plain(' '.join(message.split()))}\n")

    def _name(self) -> str:
        return self.prog.replace(" [options]", "")

    def _names(self) -> dict[str, str]:
        """Returns the arguments by key, as they are typed."""
        return {
            each.key: each.typed.split()[0].rstrip(",")
            for group in self.described
            for each in group.entries
        }

    def _report_missing(self, keys: list[str]) -> NoReturn:
        names = ", ".join(name for key, name in self._names().items() if key in keys)
        self.exit(2, f"{self._name()}: {REQUIRED}{names}\n")

    def _hint(self, words: list[str]) -> str:
        """Returns the option whose last part is nearest to that of the first unknown one, as a
        question.
        """
        by_part = {_last_part(name): name for name in self._names().values()}
        unknown = next((word for word in words if word.startswith("--")), "")
        near = get_close_matches(_last_part(unknown), by_part, 1)
        return f" (did you mean {by_part[near[0]]}?)" if near else ""

    def parse_path(self, cfg_path: Any, *arguments: Any, **options: Any) -> jsonargparse.Namespace:
        """Parses a configuration file; one that is not text, or nested too deeply, is an error in
        one line.
        """
        try:
            found = super().parse_path(cfg_path, *arguments, **options)
        # such as UnicodeDecodeError, or an integer beyond floats
        except (ValueError, OverflowError) as error:
            self.error(f"{cfg_path}: not a TOML file of options: {error}")
        except RecursionError:
            self.error(f"{cfg_path}: nested too deeply")
        try:
            name = found.get("model.preset")
            chosen = {} if name is None else preset(name)
        except ConfigError as error:
            self.error(f"{cfg_path}: {error}")
        _set_model(
            found, {key: value for key, value in chosen.items() if f"model.{key}" not in found}
        )
        if name is not None:
            del found["model.preset"]
        return found


def _set_model(namespace: Any, options: dict[str, Any]) -> None:
    for name, value in options.items():
        namespace[f"model.{name}"] = value


def _entry(action: Action, hint: Any) -> Entry:
    """Returns what the help says of an argument, whose type ``hint`` is."""
    text = " ".join((action.help or "").replace("``", "").replace("%%", "%").split()).rstrip(".")
    if not action.option_strings:
        return Entry(action.dest, str(action.metavar or action.dest), text, action.required)
    if action.required:
        text += " (required)"
    elif action.nargs != 0 and action.default not in (None, "", [], {}) and "(default" not in text:
        shown = action.default if isinstance(action.default, str | Path) else dumps(action.default)
        text += f" (default: {shown})"
    # which appends to a list
    names = [name for name in action.option_strings if not name.endswith("+")]
    typed = ", ".join([*names, DATA] if FOLDER in names else names)
    if action.nargs != 0:
        kind = action.metavar or _kind(hint)
        typed += {"+": f" {kind} [{kind} ...]", "*": f" [{kind} ...]"}.get(
            str(action.nargs), f" {kind}"
        )
    return Entry(action.dest, typed, text, action.required)


def _kind(hint: Any) -> str:
    """Returns what stands for a value of a type."""
    choices = get_args(hint)
    if NoneType in choices:
        return _kind(choices[0])
    if get_origin(hint) is Literal:
        return f"{{{','.join(choices)}}}"
    return KINDS.get(get_origin(hint) or hint, "TEXT")


def _plain(message: str) -> str:
    """Returns jsonargparse's message about the type of a value in the words of ``ConfigError``."""
    if (found := MISMATCH.fullmatch(message)) is None:
        return message
    option, kind, choices, value = found.groups()
    expected = EXPECTED.get(kind, kind) if kind else f"one of {choices.replace(chr(39), '')}"
    return f"{option}: expected {expected}, got {value}"


def _last_part(word: str) -> str:
    """Returns ``lr`` of ``--optimizer.lr=0.1``."""
    return word.partition("=")[0].lstrip("-").rpartition(".")[2].replace("-", "_")


class _Preset(Action):
    """Sets the options of a preset."""

    def __call__(
        self, parser: Any, namespace: Any, value: Any, option_string: str | None = None
    ) -> None:
        _set_model(namespace, preset(value))


class Command(NamedTuple):
    """A command.

    Attributes:
        description: its line in the help of all commands.
        add_options: adds its options to a parser.
        run: runs it with the parsed arguments.
    """

    description: str
    add_options: Callable[[Parser], None]
    run: Callable[[jsonargparse.Namespace], None]


def no_options(parser: Parser) -> None:
    """Adds no options."""


def add_config(
    parser: Parser, sections: Sequence[str] = EVERY_SECTION, defaults: RunConfig | None = None
) -> None:
    """Adds ``--config`` and an option ``--section.name`` for every option of ``sections``."""
    parser.add_argument(
        "--config",
        action="config",
        metavar="PATH",
        help="a TOML file; options after it override its values",
    )
    for name in sections:
        parser.add_section(getattr(defaults or RunConfig(), name), f"{name}.")
    if "model" in sections:
        text = f"options of the model: {' or '.join(PRESETS)}; options after it override them"
        parser.add_argument(PRESET, action=_Preset, choices=[*PRESETS], metavar="NAME", help=text)


def read_config(
    arguments: jsonargparse.Namespace, sections: Sequence[str] = EVERY_SECTION
) -> RunConfig:
    """Returns the configuration of the options that ``add_config`` added; other sections have their
    defaults.
    """
    for name in sections:
        if not isinstance(arguments[name], jsonargparse.Namespace):
            raise ConfigError(f"{name}: expected a table of options, got {arguments[name]!r}")
    options = {name: arguments[name].as_dict() for name in sections}
    options.get("model", {}).pop("preset", None)
    config = RunConfig().with_options(**options)
    if config.model.is_own:
        _search_current_directory()
    return config


def changed_words(config: RunConfig, sections: Sequence[str]) -> list[str]:
    """Returns the options of ``sections`` that differ from the defaults, as they are typed, but for
    progress bars.
    """
    defaults = RunConfig().flat()
    words = []
    for name, value in config.flat().items():
        if (
            name.partition(".")[0] in sections
            and name != "training.progress"
            and value != defaults[name]
        ):
            words += [f"--{name}", value if isinstance(value, str) else dumps(value)]
    return words


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


def _search_current_directory() -> None:
    """Lets modules be imported from the current directory, as ``python -m`` does, once the user has
    named one.
    """
    if (folder := os.getcwd()) not in sys.path:
        sys.path.insert(0, folder)


def add_warm_start(parser: Parser, what: str = "a run") -> None:
    """Adds ``--warm_start``, the task of it and whether it may take nothing; ``what`` names the run
    in the help.
    """
    run = (
        f"{what} whose weights to copy: embedding rows by field and value, dense layers by name "
        "and shape"
    )
    parser.add_argument("--warm_start", type=place, help=run)
    task = (
        "the task of a single_dnn in --warm_start whose tables become the shared ones (default: "
        "the first)"
    )
    parser.add_argument("--warm_start_task", type=str | None, help=task)
    empty = "train although no weight of --warm_start fits"
    parser.add_argument("--warm_start_empty", action="store_true", help=empty)


def read_warm_start(arguments: jsonargparse.Namespace) -> WarmStartConfig | None:
    """Returns what ``add_warm_start`` asks for, or None.

    Raises:
        ConfigError: an option is given without ``--warm_start``.
    """
    run = arguments.warm_start
    task = arguments.warm_start_task
    empty = arguments.warm_start_empty
    if run is not None:
        return WarmStartConfig(str(run), task or "", empty)
    for option, value in (("task", task), ("empty", empty)):
        if value:
            raise ConfigError(f"--warm_start_{option}: needs --warm_start, the run to start from")
    return None


def add_engine(parser: Parser, help: str) -> None:
    """Adds ``--engine``, which ``help`` describes, and the address of a cluster."""
    parser.add_argument("--engine", type=Literal["local", "ray"], default="local", help=help)
    address = "with --engine ray: HOST:PORT of the cluster (default: auto, the one of this machine)"
    parser.add_argument("--address", type=str | None, help=address)


def add_memory(parser: Parser, what: str, default: str = "4") -> None:
    """Adds ``--memory``, the GB that ``what``; ``default`` is what the help says of it."""
    parser.add_argument(
        "--memory", type=float | None, help=f"how many GB (2^30 bytes) {what} (default: {default})"
    )


@contextmanager
def training_engine(
    arguments: jsonargparse.Namespace, training: TrainingConfig, local: Engine, limit: int | None
) -> Iterator[Engine]:
    """Provides the engine that ``add_engine`` asks for, whose calls train one run each.

    Args:
        arguments: the parsed arguments.
        training: the options of the runs.
        local: the engine "local".
        limit: how many runs train on a cluster at the same time at most; None for as many as it has
            CPUs.

    Raises:
        ConfigError: the runs need a device that a task of the cluster does not have, or ``--out``
            is in a store, which one machine uploads.
        EngineError, MissingPackageError: as ``open_engine``.
    """
    from adaftr_fast.engines import Ray, open_engine

    if arguments.engine == "ray" and training.device != "cpu":
        raise ConfigError(f"training.device: expected cpu with --engine ray, got {training.device}")
    if arguments.engine == "ray" and "://" in arguments.out:
        raise ConfigError(
            f"--out: expected a folder that all nodes see, with --engine ray, got {arguments.out}"
        )
    ray = Ray(cpus=1, limit=limit, grace=GRACE_SECONDS)
    with open_engine(arguments.engine, arguments.address, local=local, ray=ray) as engine:
        yield engine
