"""The error of several processes that its user can put right."""


class RankError(RuntimeError):
    """The ranks cannot go on together: one is gone or does not answer, or they were started unlike."""
