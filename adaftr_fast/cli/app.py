"""Parses the arguments of a command, runs it and returns its exit status."""

from __future__ import annotations

import signal
import sys
import warnings

from adaftr_fast._files import naming
from adaftr_fast.cli import data, experiment, serve, train
from adaftr_fast.cli.options import Parser
from adaftr_fast.errors import RankError, UserError, extras_needed

COMMANDS = data.COMMANDS | train.COMMANDS | serve.COMMANDS | experiment.COMMANDS
OF_RANKS = ("train", "daily", "stream", "demo")  # commands that torchrun may start
USER_ERRORS = (UserError, OSError)  # an OSError names the file and the cause
INTERRUPTED = 128  # plus the number of the signal, as shells report a program that a signal ended


def main(arguments: list[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: the command-line arguments. None reads ``sys.argv``.

    Returns:
        The exit status: 0; 2 after an error that the user can correct, which prints one line; 130
            after Ctrl-C; 143
        after SIGTERM. Other errors show a traceback, and ``--debug`` shows one for every error.
    """
    words = sys.argv[1:] if arguments is None else arguments
    parser = build_parser(words)
    parsed = parser.parse_args(parser.spelled_out(words))
    name = parsed.subcommand
    # imports torch, which --help does not wait for
    from adaftr_fast.distributed.ranks import launched

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
                COMMANDS[name].run(parsed[name])
                sys.stdout.flush()
        except USER_ERRORS as error:
            if parsed.debug:
                raise
            print(f"adaftr-fast {name}: {' '.join(str(error).split())}", file=sys.stderr)
            return 2
        except KeyboardInterrupt as stop:
            if parsed.debug:
                raise
            print(
                f"adaftr-fast {name}: {stop.args[1] if len(stop.args) > 1 else 'interrupted'}",
                file=sys.stderr,
            )
            return INTERRUPTED + (stop.args[0] if stop.args else signal.SIGINT)
    return 0


def build_parser(words: list[str]) -> Parser:
    """Builds the parser of the commands, with the options of those that ``words`` name.

    Every option of a run is an option ``--section.name`` and a TOML key.
    """
    about = (
        "Joint click/conversion models with adaptive task relatedness: prepare data, train, "
        "evaluate, serve."
    )
    parser = Parser(prog="adaftr-fast", description=about, parser_mode="toml")
    parser.add_argument("--debug", action="store_true", help="show a traceback for every error")
    commands = parser.add_subcommands(required=True)
    for name, command in COMMANDS.items():
        # print_config requires a TOML writer; best/checkpoint.json records every option.
        subparser = Parser(description=command.description, print_config=None)
        if name in words:  # most of the time to start is that of options
            command.add_options(subparser)
        commands.add_subcommand(name, subparser)
        parser.commands[name] = subparser
    return parser
