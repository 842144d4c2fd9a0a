"""The parser of the commands, its help, and the options that derive from ``RunConfig``."""

from adaftr_fast.cli.options.engine import add_engine, training_engine
from adaftr_fast.cli.options.parser import Parser, add_class, add_config, read_class, read_config
from adaftr_fast.cli.options.place import place
from adaftr_fast.cli.options.warm_start import add_warm_start, read_warm_start

__all__ = [
    "Parser",
    "add_class",
    "add_config",
    "add_engine",
    "add_warm_start",
    "place",
    "read_class",
    "read_config",
    "read_warm_start",
    "training_engine",
]
