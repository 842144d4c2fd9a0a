"""The command line: each command is a few lines over the Python API.

A command imports what it runs only when it runs, so ``--help`` is fast.
"""

import sys

from adaftr_fast.errors import MissingPackageError, extras_needed

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; see ``adaftr_fast.cli.app.main``. Returns 2 where the parser's package is
    not installed.
    """
    try:
        with extras_needed():
            from adaftr_fast.cli import app
    except MissingPackageError as error:
        print(f"adaftr-fast: {error}", file=sys.stderr)
        return 2
    return app.main(arguments)
