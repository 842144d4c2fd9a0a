"""The parser of the commands, and the options that derive from ``RunConfig``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import jsonargparse

from adaftr_fast.config import RunConfig
from adaftr_fast.config.run import SECTIONS
from adaftr_fast.errors import ConfigError

EVERY_SECTION = tuple(SECTIONS)


class Parser(jsonargparse.ArgumentParser):
    """A parser that reports errors in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the name of the command and the message, and exits with status 2."""
        name = self.prog.replace(" [options]", "")
        self.exit(2, f"{name}: {' '.join(message.split())}\n")

    def parse_path(self, cfg_path: Any, *arguments: Any, **options: Any) -> jsonargparse.Namespace:
        """Parses a configuration file; one that is not text, or nested too deeply, is an error in one line."""
        try:
            return super().parse_path(cfg_path, *arguments, **options)
        except (ValueError, OverflowError) as error:  # such as UnicodeDecodeError, or an integer beyond floats
            self.error(f"{cfg_path}: not a TOML file of options: {error}")
        except RecursionError:
            self.error(f"{cfg_path}: nested too deeply")


def add_config(parser: Parser, sections: Sequence[str] = EVERY_SECTION, help: str | None = None) -> None:
    """Adds ``--config`` and an option ``--section.name`` for every option of ``sections``."""
    parser.add_argument("--config", action="config", help="a TOML file; options after it override its values")
    for name in sections:
        parser.add_argument(f"--{name}", type=SECTIONS[name], default=SECTIONS[name](), help=help)


def read_config(arguments: jsonargparse.Namespace, sections: Sequence[str] = EVERY_SECTION) -> RunConfig:
    """Returns the configuration of the options that ``add_config`` added; other sections have their defaults."""
    for name in sections:
        if not isinstance(arguments[name], jsonargparse.Namespace):
            raise ConfigError(f"{name}: expected a table of options, got {arguments[name]!r}")
    return RunConfig().with_options(**{name: arguments[name].as_dict() for name in sections})
