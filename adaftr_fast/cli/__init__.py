"""The command line: one file per command, each a few lines over the Python API.

A command imports what it runs only when it runs, so ``--help`` is fast.
"""

from adaftr_fast.cli.app import main

__all__ = ["main"]
