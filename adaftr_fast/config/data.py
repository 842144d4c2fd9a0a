"""The data section of a run."""

from dataclasses import dataclass

from adaftr_fast.config.options import Section, option


@dataclass
class DataConfig(Section):
    """Where the rows come from."""

    section = "data"

    folder: str = option("data/flights")
    """A folder written by ``adaftr-fast prepare``."""
