"""The parser of the commands, its help, and the options that derive from ``RunConfig``."""

from adaftr_fast.cli.options.parser import Parser, add_class, add_config, read_class, read_config

__all__ = ["Parser", "add_class", "add_config", "read_class", "read_config"]
