"""Commands as dataclasses: the parser of their options, and the options that several have."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import shutil
import sys
import textwrap
from argparse import (
    SUPPRESS,
    Action,
    ArgumentParser,
    ArgumentTypeError,
    Namespace,
    RawDescriptionHelpFormatter,
)
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import MISSING, dataclass
from difflib import get_close_matches
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    NoReturn,
    TypeVar,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from adaftr_fast.config import ModelConfig, RunConfig, WarmStartConfig
from adaftr_fast.config.fitted import FITTED
from adaftr_fast.config.model import PRESETS, preset
from adaftr_fast.config.run import expanded
from adaftr_fast.errors import ConfigError
from adaftr_fast.files.json import EXPECTED, dumps, from_json, loads, shown
from adaftr_fast.files.toml import loads_toml

if TYPE_CHECKING:
    from adaftr_fast.engines import Engine

WIDTH, COLUMN = 110, 30  # the widest line, and the last column at which texts begin
FIRST = {
    "name",
    "preset",
    "dataset",
    "files",
    "out",
    "trials",
    "space",
    "data.folder",
    "model.name",
    "model.embedding_dim",
    "model.tower_hidden",
    "optimizer.lr",
    "training.batch_size",
    "training.max_epochs",
    "training.device",
}
"""Options of a run that its help lists first."""
SPELLED = {
    "data.folder": ("--data.folder", "--data"),  # other commands have the latter
    # a field of a dataclass cannot be called "class"
    "model.name": ("--model.name", "--model.class"),
    "model_class": ("--model.class",),
}
"""How options are typed, where it is not by their name alone."""
MAY_BE_EMPTY = ("funnel",)
"""Options of words that mean something without a word."""
T = TypeVar("T")
FILE = "A TOML file; options after it override its values"
GRACE_SECONDS = 60.0  # in which an interrupted run saves a snapshot

Place = Annotated[str, "PATH"]
"""A path or a URL of a store, which the functions that commands call parse."""


class Kind(NamedTuple):
    """How a value of a type is given.

    Attributes:
        shown: what stands for it in the help.
        read: converts its text. Raises ValueError if the text is not one.
    """

    shown: str
    read: Callable[[str], Any]


KINDS: dict[Any, Kind] = {
    int: Kind("N", int),
    float: Kind("X", float),
    bool: Kind("{true,false}", lambda text: loads(text.lower())),
    list: Kind("[ITEM,...]", loads),
    dict: Kind("JSON", loads),
}


@dataclass_transform(
    kw_only_default=True, frozen_default=True, field_specifiers=(dataclasses.field,)
)
def options(kind: type[T]) -> type[T]:
    """Makes a class a dataclass whose fields are options, in any order."""
    return dataclass(frozen=True, kw_only=True)(kind)


@options
class Command:
    """A command. A subclass is a dataclass whose docstring describes the command.

    A field with an attribute docstring, which is its help text, is an option. Options that several
    commands have, or that form a group in the help, are a dataclass that the command inherits from.

    Attributes:
        sections: the sections of ``RunConfig`` whose fields are options ``--section.name``, too.
        positional: the fields that are given without their names.
        example: lines at the end of the help.
        texts: the help texts of inherited options that mean something else here.
        config: the options of ``sections``; a subclass may have other defaults.
    """

    sections: ClassVar[Sequence[str]] = ()
    positional: ClassVar[Sequence[str]] = ()
    example: ClassVar[str] = ""
    texts: ClassVar[Mapping[str, str]] = {}
    config: RunConfig = dataclasses.field(default_factory=RunConfig)

    def __call__(self) -> None:
        """Runs the command."""
        raise NotImplementedError

    def values(self) -> dict[str, Any]:
        """Returns the options by name, without ``config``."""
        names = [each.name for each in dataclasses.fields(self) if each.name != "config"]
        return {name: getattr(self, name) for name in names}

    @classmethod
    def of(cls, values: dict[str, Any]) -> Command:
        """Returns the command with these options, by name.

        Raises:
            ConfigError: an option has a wrong value.
        """
        own: dict[str, Any] = {}
        sections: dict[str, dict[str, Any]] = {}
        for key, value in values.items():
            section, dot, name = key.partition(".")
            if dot:
                sections.setdefault(section, {})[name] = value
            else:
                own[key] = value
        try:
            command = from_json(cls, own)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        config = command.config.with_options(**sections)
        if isinstance(command, Fitted):
            config = dataclasses.replace(config, preset=command.preset or "data")
        if config.model.is_own:
            search_current_directory()
        return dataclasses.replace(command, config=config)


class Parser(ArgumentParser):
    """A parser of a command's options that reports errors in one line.

    Args:
        prog: the words that call the command.
        command: the command. None adds no options.
        options: those of ``ArgumentParser`` that ``add_subparsers`` hands on.
    """

    def __init__(
        self,
        prog: str,
        command: type[Command] | None = None,
        **options: Any,
    ) -> None:
        self.width = min(max(shutil.get_terminal_size().columns, 2 * COLUMN), WIDTH) - 2
        super().__init__(
            prog,
            add_help=False,
            argument_default=SUPPRESS,
            formatter_class=partial(
                RawDescriptionHelpFormatter, max_help_position=COLUMN, width=self.width
            ),
            **options,
        )
        self.names: list[str] = []
        self.own: dict[str, Action] = {}  # the options that are of no section
        self.required: list[str] = []
        if command is not None:
            self._add_command(command)

    def help_group(self, title: str) -> Any:
        """Adds a group of options with ``--help``, and returns it."""
        group = self.add_argument_group(title)
        group.add_argument("-h", "--help", action="help", help="Show this help message and exit")
        return group

    def error(self, message: str) -> NoReturn:
        """Prints the name of the command and the message, and exits with status 2."""
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")

    def report_unknown(self, words: list[str]) -> NoReturn:
        """Reports arguments that no option takes, with the option whose last part is nearest to
        that of the first.
        """
        by_part = {_last_part(name): name for name in self.names}
        unknown = next((word for word in words if word.startswith("--")), "")
        near = get_close_matches(_last_part(unknown), by_part, 1)
        hint = f" (did you mean {by_part[near[0]]}?)" if near else ""
        self.error(f"unrecognized arguments: {' '.join(words)}{hint}")

    def _add_command(self, command: type[Command]) -> None:
        sections = command.sections
        first = self.add_argument_group("the options that matter first")
        own = self.help_group("other options" if sections else "options")
        defaults = {each.name: _default(each) for each in dataclasses.fields(command)}
        for kind in command.__mro__:
            if kind is not Command and dataclasses.is_dataclass(kind):
                group = own if kind is command else self._add_group(kind)
                self._add_fields(kind, "", defaults, [first, group], command)
        if sections:
            first.add_argument("--config", action=_File, const=sections, metavar="PATH", help=FILE)
            self.names.append("--config")
        for name in sections:
            section = getattr(defaults["config"], name)
            group = self._add_group(type(section))
            self._add_fields(type(section), f"{name}.", vars(section), [first, group], command)
            if name == "model":
                text = (
                    f"Options of the model, {' or '.join(PRESETS)}; options after it override them"
                )
                group.add_argument(
                    "--model.preset", action=_Preset, choices=PRESETS, metavar="NAME", help=text
                )
        self.usage = " ".join([self.prog, *self.required, "[options]"])
        self.description = description(command)
        if command.example:
            self.epilog = f"example:\n{textwrap.indent(command.example, '  ')}"

    def _add_group(self, kind: type) -> Any:
        """Adds a group whose title and description are the docstring of a dataclass."""
        title, _, rest = description(kind).rstrip(".").partition(". ")
        return self.add_argument_group(title, textwrap.fill(rest, self.width - 2) or None)

    def _add_fields(
        self,
        kind: type,
        prefix: str,
        defaults: Mapping[str, Any],
        groups: list[Any],
        command: type[Command],
    ) -> None:
        """Adds the fields of a dataclass to one of two groups: those that matter first, and
        others.
        """
        hints = get_type_hints(kind, include_extras=True)
        for name, text in _texts(kind).items():
            key = prefix + name
            group = groups[0 if command.sections and key in FIRST else 1]
            text = command.texts.get(key, text)
            if key in FITTED and issubclass(command, Fitted):
                text = (
                    text.rstrip(".")
                    + f" (default: fits the log; --preset paper: {dumps(defaults[name])})"
                )
            self._add_option(
                group, key, hints[name], text, defaults[name], key in command.positional
            )

    def _add_option(
        self, group: Any, name: str, hint: Any, text: str, default: Any, is_positional: bool
    ) -> None:
        kind = get_args(hint)[0] if NoneType in get_args(hint) else hint
        text = " ".join(text.replace("``", "").split()).rstrip(".")
        names = () if is_positional else SPELLED.get(name, (f"--{name}",))
        options: dict[str, Any] = {"dest": name}
        if default is MISSING and not is_positional:
            text += " (required)"
            options["required"] = True
        elif default not in (MISSING, None, "", [], {}) and "(default" not in text:
            text += f" (default: {default if isinstance(default, str) else dumps(default)})"
        is_list = get_origin(kind) is list and "." not in name  # words after the option
        metavar = name.upper() if is_positional else _shown(get_args(kind)[0] if is_list else kind)
        if is_list:
            options["nargs"] = "*" if name in MAY_BE_EMPTY else "+"
        else:
            options["type"] = partial(value_of, hint)
        if kind is bool:  # an option alone is true
            options |= {"nargs": "?", "const": True}
        action = group.add_argument(
            *names, metavar=metavar, help=text.replace("%", "%%"), **options
        )
        self.names += names
        if "." not in name:
            self.own[name] = action
        if default is MISSING:
            self.required.append(" ".join([*names, metavar]))


class _File(Action):
    """Sets the options that a file has, which are then no longer required; ``const`` are the
    sections among them.
    """

    def __call__(
        self, parser: Any, namespace: Namespace, value: Any, option_string: str | None = None
    ) -> None:
        given: dict[str, Any] = {}
        try:
            content = expanded(loads_toml(Path(value).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            parser.error(f"{value}: not a TOML file of options: {error}")
        for name, each in content.items():
            if name in parser.own:
                given[name] = each
                parser.own[name].required = False
            elif name not in self.const:
                expected = ", ".join([*self.const, *parser.own])
                parser.error(f"{value}: unknown option {name!r}; expected one of {expected}")
            elif isinstance(each, dict):
                given |= {f"{name}.{key}": option for key, option in each.items()}
            else:
                parser.error(f"{value}: {name}: expected a table of options, got {shown(each)}")
        vars(namespace).update(given)


class _Preset(Action):
    """Sets the options of a preset."""

    def __call__(
        self, parser: Any, namespace: Namespace, value: Any, option_string: str | None = None
    ) -> None:
        vars(namespace).update({f"model.{key}": each for key, each in preset(value).items()})


def value_of(hint: Any, text: str) -> Any:
    """Returns the value of type ``hint`` that a text stands for.

    Raises:
        ArgumentTypeError: there is none.
    """
    if NoneType in get_args(hint):
        return None if text == "null" else value_of(get_args(hint)[0], text)
    kind = get_origin(hint) or hint
    if kind is Literal and text not in get_args(hint):
        raise ArgumentTypeError(f"expected one of {', '.join(get_args(hint))}, got {text}")
    if kind not in KINDS:
        return text
    try:
        value = KINDS[kind].read(text)
    except ValueError:
        value = None
    if not isinstance(value, kind):
        raise ArgumentTypeError(f"expected {EXPECTED[kind]}, got {text}")
    return value


def _shown(hint: Any) -> str:
    """Returns what stands for a value of a type in the help."""
    if get_origin(hint) is Annotated:
        return str(hint.__metadata__[0])
    if get_origin(hint) is Literal:
        return f"{{{','.join(get_args(hint))}}}"
    kind = KINDS.get(get_origin(hint) or hint)
    return "TEXT" if kind is None else kind.shown


def description(kind: type) -> str:
    """Returns the docstring of a class in one line."""
    # python -OO removes docstrings, and a dataclass then has its signature
    text = ast.get_docstring(_source(kind)) if sys.flags.optimize > 1 else kind.__doc__
    return " ".join((text or "").split())


def _source(kind: type) -> ast.ClassDef:
    (tree,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(tree, ast.ClassDef)
    return tree


def _default(field: dataclasses.Field[Any]) -> Any:
    """Returns the default of a field, or ``MISSING``."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def _texts(kind: type) -> dict[str, str]:
    """Returns the docstrings of a class's own attributes by name, in order."""
    return {
        ast.unparse(field.target): ast.literal_eval(text.value)
        for field, text in pairwise(_source(kind).body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


def _last_part(word: str) -> str:
    """Returns ``lr`` of ``--optimizer.lr=0.1``."""
    return word.partition("=")[0].lstrip("-").rpartition(".")[2].replace("-", "_")


def search_current_directory() -> None:
    """Lets modules be imported from the current directory, as ``python -m`` does, once the user has
    named one.
    """
    if (folder := os.getcwd()) not in sys.path:
        sys.path.insert(0, folder)


@options
class Fitted:
    """Options that fit the log."""

    preset: Literal["paper", "fitted"] | None = None
    """Where the options come from that are not given: fitted, the number of training rows, or
    paper; by default that of the data set, and fitted for data of your own.
    """


@options
class OwnModel:
    """The model, if it is one of your own."""

    model_class: str | None = None
    """The class of the run's model as module:Class; it is imported."""

    def named_class(self) -> str | None:
        """Returns the class, which the user agrees to import."""
        if self.model_class is not None:
            ModelConfig(name=self.model_class)  # raises an error if it cannot be a name
            search_current_directory()
        return self.model_class


@options
class WarmStart:
    """The run to start from."""

    warm_start: Place | None = None
    """A run whose weights to copy before the first step: embedding rows by field and value, dense
    layers by name and shape.
    """
    warm_start_task: str | None = None
    """The task of a single_dnn in --warm_start whose tables become the shared ones (default: the
    first).
    """
    warm_start_empty: bool = False
    """Train although no weight of --warm_start fits."""

    def start(self) -> WarmStartConfig | None:
        """Returns the run to start from, or None.

        Raises:
            ConfigError: an option needs ``--warm_start``.
        """
        if self.warm_start is not None:
            task = self.warm_start_task or ""
            return WarmStartConfig(self.warm_start, task, self.warm_start_empty)
        for option, value in (("task", self.warm_start_task), ("empty", self.warm_start_empty)):
            if value:
                raise ConfigError(
                    f"--warm_start_{option}: needs --warm_start, the run to start from"
                )
        return None


@options
class OnEngine:
    """Where the work is done."""

    engine: Literal["local", "ray"] = "local"
    """What runs the steps: local, this process, or ray, a Ray cluster that sees the inputs and
    --out.
    """
    address: str | None = None
    """With --engine ray: HOST:PORT of the cluster (default: auto, the one of this machine)."""

    def training_engine(self, out: str, device: str, limit: int) -> AbstractContextManager[Engine]:
        """Provides the engine, whose calls train one run each.

        Args:
            out: the value of ``--out``.
            device: the device that the runs need.
            limit: how many runs train on a cluster at the same time at most.

        Raises:
            ConfigError: a task of the cluster does not have the device, or ``out`` is in a store,
                which one machine uploads.
            EngineError, MissingPackageError: as ``open_engine``.
        """
        from adaftr_fast.api.engines import open_engine

        if self.engine == "ray" and device != "cpu":
            raise ConfigError(f"training.device: expected cpu with --engine ray, got {device}")
        if self.engine == "ray" and "://" in out:
            raise ConfigError(
                f"--out: expected a folder that all nodes see, with --engine ray, got {out}"
            )
        return open_engine(self.engine, self.address, cpus=1, limit=limit, grace=GRACE_SECONDS)
