"""The command line: a file a command, each a few lines over the Python API.

What a command needs beyond its options is imported when it runs, so that ``--help`` is quick.
"""

from adaftr_fast.cli.main import main

__all__ = ["main"]
