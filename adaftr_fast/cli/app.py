"""Parses the arguments of a command, runs it and returns its exit status."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from argparse import SUPPRESS
from typing import Any

from adaftr_fast._startup import launched
from adaftr_fast.cli import data, serve, train
from adaftr_fast.cli.options import Command, Parser, description
from adaftr_fast.errors import RankError, UserError, extras_needed
from adaftr_fast.files.whole import FULL, naming

COMMANDS: dict[str, type[Command]] = {
    kind.__name__.lower(): kind
    for kind in (
        data.Prepare,
        data.Synthesize,
        data.Info,
        train.Train,
        train.Tune,
        train.Daily,
        train.Stream,
        train.Demo,
        serve.Evaluate,
        serve.Compare,
        serve.Export,
        serve.Predict,
        serve.Serve,
    )
}
OF_RANKS = ("train", "daily", "stream", "demo")  # commands that torchrun may start
USER_ERRORS = (UserError, OSError)  # an OSError names the file and the cause
INTERRUPTED = 128  # plus the number of the signal, as shells report a program that a signal ended


def main(arguments: list[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: the command-line arguments. None reads ``sys.argv``.

    Returns:
        The exit status: 0; 2 after an error that the user can correct, which prints one line; 130
            after Ctrl-C; 143 after SIGTERM. Both end ``serve`` with 0. Other errors show a
            traceback, and ``--debug`` shows one for every error.
    """
    name, debug, values = parse(sys.argv[1:] if arguments is None else arguments)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(
            f"warning: {message}", file=sys.stderr
        )
        try:
            if launched() and name not in OF_RANKS:
                supported = ", ".join(OF_RANKS)
                raise RankError(
                    f"only {supported} support several processes (torchrun sets WORLD_SIZE > 1)"
                )
            # each file that a command writes is named before
            with extras_needed(), naming("standard output"):
                COMMANDS[name].of(values)()
                sys.stdout.flush()
        except USER_ERRORS as error:
            if debug:
                raise
            print(f"adaftr-fast {name}: {' '.join(_text(error).split())}", file=sys.stderr)
            return 2
        except KeyboardInterrupt as stop:
            if debug:
                raise
            print(
                f"adaftr-fast {name}: {stop.args[1] if len(stop.args) > 1 else 'interrupted'}",
                file=sys.stderr,
            )
            return INTERRUPTED + (stop.args[0] if stop.args else signal.SIGINT)
    return 0


def _text(error: UserError | OSError) -> str:
    """Returns an error for the user: what cannot grow, and what to do, in place of a number."""
    if isinstance(error, OSError) and error.errno in FULL and error.filename is not None:
        cause = os.strerror(error.errno)
        return (
            f"{error.filename}: cannot be written: {cause}; make room, and run the same command "
            "again"
        )
    return str(error)


def parse(words: list[str]) -> tuple[str, bool, dict[str, Any]]:
    """Returns the name of the command, whether to show tracebacks, and the options that are given,
    by name.

    An option of a run is an option ``--section.name`` and a key of a TOML file.
    """
    parser = Parser("adaftr-fast")
    parser.usage = "adaftr-fast COMMAND [options]"
    lines = [
        "Joint click/conversion models with adaptive task relatedness: prepare data, train, "
        "evaluate, serve.",
        "",
        "commands:",
    ]
    parsers = {}
    commands = parser.add_subparsers(
        dest="COMMAND", required=True, prog="adaftr-fast", help=SUPPRESS
    )
    for name, command in COMMANDS.items():
        lines.append(f"  {name:<12}{description(command).rstrip('.')}")
        # most of the time to start is that of options
        of_words = command if name in words else None
        parsers[name] = commands.add_parser(name, command=of_words)
    parser.description = "\n".join(lines)
    parser.help_group("options").add_argument(
        "--debug", action="store_true", help="Show a traceback for every error"
    )
    found, unknown = parser.parse_known_args(words)
    values = vars(found)
    name = values.pop("COMMAND")
    if unknown:
        parsers[name].report_unknown(unknown)
    return name, values.pop("debug", False), values
