"""The errors of training that its user can put right."""


class TrainingError(RuntimeError):
    """Training cannot go on: a loss is not finite, or the data leave nothing to learn or to select by."""


class CheckpointError(RuntimeError):
    """A checkpoint is absent, damaged, or of another model or data set."""
