"""Parses the arguments of a command, runs it, and turns its end into an exit status."""

from __future__ import annotations

import signal
import sys
import warnings
from typing import Any

import jsonargparse

from adaftr_fast.cli import daily, demo, evaluate, experiment, export, info, predict, prepare, synthesize, train
from adaftr_fast.cli.options import Parser
from adaftr_fast.distributed.ranks import launched
from adaftr_fast.errors import RankError, UserError

COMMANDS: dict[str, Any] = {
    module.__name__.rpartition(".")[2]: module
    for module in (prepare, synthesize, train, daily, evaluate, export, predict, demo, experiment, info)
}
USER_ERRORS = (UserError, OSError)  # an OSError names its file and the system's reason
INTERRUPTED = 128  # + the signal's number: what shells report for a program that a signal ended


def main(arguments: list[str] | None = None) -> int:
    """Runs one command.

    Returns 0, 2 after one line about what the user can put right, 130 after Ctrl-C, or 143 after SIGTERM. Any other
    error shows a traceback; ``--debug`` shows one always.
    """
    parsed = build_parser().parse_args(arguments)
    name = parsed.subcommand
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
        try:
            if launched() and name != "train":
                raise RankError("only train runs as several processes (WORLD_SIZE > 1, as torchrun sets it)")
            COMMANDS[name].run(parsed[name])
        except USER_ERRORS as error:
            if parsed.debug:
                raise
            print(f"adaftr-fast {name}: {' '.join(str(error).split())}", file=sys.stderr)
            return 2
        except KeyboardInterrupt as stop:
            if parsed.debug:
                raise
            print(f"adaftr-fast {name}: {stop.args[1] if len(stop.args) > 1 else 'interrupted'}", file=sys.stderr)
            return INTERRUPTED + (stop.args[0] if stop.args else signal.SIGINT)
    return 0


def build_parser() -> Parser:
    """The parser of all commands; every option of a run is an option ``--section.name`` and a TOML key."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)  # help texts of config fields
    about = "Joint click/conversion models with adaptive task relatedness: prepare data, train, evaluate, serve."
    parser = Parser(prog="adaftr-fast", description=about, parser_mode="toml")
    parser.add_argument("--debug", action="store_true", help="show a traceback for every error")
    commands = parser.add_subcommands(required=True)
    for name, module in COMMANDS.items():
        # print_config would need a writer of TOML; best/checkpoint.json records every option instead.
        command = Parser(description=module.DESCRIPTION, print_config=None)
        module.add_arguments(command)
        commands.add_subcommand(name, command, help=module.DESCRIPTION)
    return parser
