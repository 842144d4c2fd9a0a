"""The error of serving that its user can put right."""


class ServingError(RuntimeError):
    """A model cannot be exported, or an exported one is absent, damaged or gives no finite score."""
