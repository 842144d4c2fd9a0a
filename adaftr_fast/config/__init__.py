"""The settings of a run, a dataclass a section."""
