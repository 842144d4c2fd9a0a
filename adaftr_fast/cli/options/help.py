"""Help texts: the options that matter first, then the others by section, each with its default."""

from __future__ import annotations

import re
import shutil
import textwrap
from argparse import SUPPRESS, Action, _HelpAction, _SubParsersAction
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonargparse

from adaftr_fast._json import dumps
from adaftr_fast.config.run import SECTIONS

WIDTH, COLUMN = 110, 30  # the widest line, and the column at which help texts begin
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
TITLE = re.compile(r"(The .*? options)[.:] ?(.*)", re.DOTALL)


@dataclass
class Group:
    """A group of options as argparse formats it."""

    title: str
    description: str | None
    _group_actions: list[Action]


def arranged(groups: Iterable[Any]) -> list[Group]:
    """Returns the groups to show: commands or the options that matter first, then the others of each group.

    A parser without the options of a run keeps its groups. The options ``--section`` are left out, which read a file of
    one section.
    """
    made = [Group(each.title or "", each.description, list(each._group_actions)) for each in groups]
    if commands := [each for each in made if any(isinstance(a, _SubParsersAction) for a in each._group_actions)]:
        rest = [each for each in made if each not in commands]
        return [Group("commands", None, commands[0]._group_actions), *rest]
    if not any("." in action.dest for each in made for action in each._group_actions):
        return made
    known = {action.dest: action for each in made for action in each._group_actions}
    first = [known[name] for name in FIRST if name in known]
    for each in made:
        each._group_actions = [a for a in each._group_actions if a not in first and a.dest not in SECTIONS]
        if each.title == "options":
            each.title = "other options"
        if found := TITLE.fullmatch(each.title.strip()):
            each.title, each.description = found.groups()
    return [Group("the options that matter first", None, first), *(each for each in made if each._group_actions)]


class HelpFormatter(jsonargparse.DefaultHelpFormatter):
    """Formats an option as its name, its kind of value, its help and its default."""

    def __init__(self, prog: str, *arguments: Any, **options: Any) -> None:
        width = min(shutil.get_terminal_size().columns, WIDTH) - 2
        super().__init__(prog, max_help_position=COLUMN, width=width)

    def _format_usage(self, usage: Any, actions: Iterable[Action], groups: Any, prefix: str | None) -> str:
        """Names what is required alone."""
        words = [self._prog.replace(" [options]", "")]
        for action in actions:
            if isinstance(action, _SubParsersAction):
                words.append("COMMAND")
            elif action.required:
                words.append(self._format_action_invocation(action))
        line = f"{'usage: ' if prefix is None else prefix}{' '.join(words)} [options]"
        return "\n".join(textwrap.wrap(line, self._width, subsequent_indent="  ", break_long_words=False)) + "\n\n"

    def _format_action(self, action: Action) -> str:
        if isinstance(action, _SubParsersAction):  # a line per command, without a title
            return "".join(map(self._format_action, action._get_subactions()))
        return super()._format_action(action)

    def _format_action_invocation(self, action: Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        names = ", ".join(name for name in action.option_strings if not name.endswith("+"))  # which appends to a list
        if action.nargs == 0:
            return names
        return f"{names} {self._format_args(action, self._get_default_metavar_for_optional(action))}"

    def _get_default_metavar_for_optional(self, action: Action) -> str:
        if action.dest == "config":
            return "PATH"
        kind = self._get_type_str(action) or ""
        kinds = {
            "int": "N",
            "float": "X",
            "dict": "JSON",
            "Path": "PATH",
            "<function place": "PATH",
            "<class 'Path'>": "PATH",
        }
        return next((name for start, name in kinds.items() if kind.startswith(start)), "TEXT")

    def _get_help_string(self, action: Action) -> str:
        if isinstance(action, _HelpAction):
            return "show this text"
        text = (action.help or "").replace("``", "").rstrip(".")
        if action.required and action.option_strings:
            return f"{text} (required)"
        is_plain = action.nargs == 0 or action.default in (None, SUPPRESS, "", [], {}) or "(default" in text
        return text if is_plain or not action.option_strings else f"{text} (default: {_shown(action.default)})"


def _shown(value: Any) -> str:
    if isinstance(value, str | Path | int | float) and not isinstance(value, bool):
        return str(value)
    return dumps(value)
