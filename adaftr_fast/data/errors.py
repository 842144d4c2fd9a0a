"""The one error of the data layer."""


class DataError(ValueError):
    """Something about a schema, an input file or a prepared folder that its owner can put right."""
