"""The parser of the commands, and the options that derive from ``RunConfig``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import jsonargparse

from adaftr_fast.config import RunConfig
from adaftr_fast.config.run import SECTIONS

EVERY_SECTION = tuple(SECTIONS)


class Parser(jsonargparse.ArgumentParser):
    """A parser that reports errors in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the name of the command and the message, and exits with status 2."""
        name = self.prog.replace(" [options]", "")
        self.exit(2, f"{name}: {' '.join(message.split())}\n")


def add_config(parser: Parser, sections: Sequence[str] = EVERY_SECTION, help: str | None = None) -> None:
    """Adds ``--config`` and an option ``--section.name`` for every option of ``sections``."""
    parser.add_argument("--config", action="config", help="a TOML file; options after it override its values")
    for name in sections:
        parser.add_argument(f"--{name}", type=SECTIONS[name], default=SECTIONS[name](), help=help)


def read_config(arguments: jsonargparse.Namespace, sections: Sequence[str] = EVERY_SECTION) -> RunConfig:
    """Returns the configuration of the options that ``add_config`` added; other sections have their defaults."""
    return RunConfig().with_options(**{name: arguments[name].as_dict() for name in sections})
