"""Help texts: the options that matter first, then the others by section, each with its default."""

from __future__ import annotations

import shutil
import textwrap
from dataclasses import dataclass, field
from typing import NamedTuple

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


def help_text(name: str, description: str, groups: list[Group]) -> str:
    """Returns the help text of a command."""
    width = min(max(shutil.get_terminal_size().columns, 2 * COLUMN), WIDTH) - 2
    entries = [each for group in groups for each in group.entries]
    column = min(max(len(each.typed) for each in entries) + 4, COLUMN)
    usage = " ".join([f"usage: {name}", *(each.typed for each in entries if each.required), "[options]"])
    blocks = [textwrap.fill(usage, width, subsequent_indent="  ", break_long_words=False)]
    blocks.append(textwrap.fill(description, width))
    for group in _arranged(groups):
        lines = [f"{group.title}:"]
        if group.description:
            lines += [textwrap.indent(textwrap.fill(group.description, width - 2), "  "), ""]
        for each in group.entries:
            head = f"  {each.typed}".ljust(column)
            if len(head) > column or head[-2:] != "  ":
                lines.append(head.rstrip())
                head = " " * column
            lines.append(textwrap.fill(each.text, width, initial_indent=head, subsequent_indent=" " * column))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _arranged(groups: list[Group]) -> list[Group]:
    """Puts the options that matter first before the others of each group, if there are options of a run."""
    known = {each.key: each for group in groups for each in group.entries}
    if "training.device" not in known:
        return groups
    first = [known[key] for key in FIRST if key in known]
    others = [Group(each.title, each.description, [e for e in each.entries if e not in first]) for each in groups]
    others[0].title = "other options"
    return [Group("the options that matter first", entries=first), *(each for each in others if each.entries)]
