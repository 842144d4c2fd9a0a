"""The data section of a run."""

from dataclasses import dataclass

from adaftr_fast.config.options import Section, option


@dataclass
class DataConfig(Section):
    """The data options."""

    section = "data"

    folder: str = option("data/flights")
    """The folder that ``adaftr-fast prepare`` wrote."""
