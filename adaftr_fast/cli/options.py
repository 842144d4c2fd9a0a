"""What the commands share: the parser, and options that derive from ``RunConfig``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import jsonargparse

from adaftr_fast.config import RunConfig
from adaftr_fast.config.run import SECTIONS

EVERY_SECTION = tuple(SECTIONS)


class Parser(jsonargparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the message after the command's name and exits with 2."""
        name = self.prog.replace(" [options]", "")
        self.exit(2, f"{name}: {' '.join(message.split())}\n")


def add_config(parser: Parser, sections: Sequence[str] = EVERY_SECTION, help: str | None = None) -> None:
    """Adds ``--config`` and an option ``--section.name`` for every option of ``sections``."""
    parser.add_argument("--config", action="config", help="a TOML file; options given after it win")
    for name in sections:
        parser.add_argument(f"--{name}", type=SECTIONS[name], default=SECTIONS[name](), help=help)


def read_config(arguments: jsonargparse.Namespace, sections: Sequence[str] = EVERY_SECTION) -> RunConfig:
    """The configuration that ``add_config``'s options say; other sections hold their defaults."""
    return RunConfig(**{name: SECTIONS[name](**arguments[name].as_dict()) for name in sections})
