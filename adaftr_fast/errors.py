"""The errors that a user can put right. The command line shows them as one line, and any other as a
traceback.
"""

from collections.abc import Iterator
from contextlib import contextmanager

EXTRAS = {
    "confluent_kafka": "kafka",
    "duckdb": "sql",
    "fsspec": "train",
    "matplotlib": "train",
    "mlflow": "mlflow",
    "optuna": "tune",
    "prometheus_client": "serve",
    "pyarrow": "train",
    "ray": "ray",
    "starlette": "serve",
    "tensorboard": "tensorboard",
    "tqdm": "train",
    "uvicorn": "serve",
    "wandb": "wandb",
}
"""Package -> the extra of pyproject.toml that installs it, where it is imported without asking
whether it is there.
"""


class UserError(Exception):
    """An input, a setting or a file that its owner can put right; the message names it."""


class ConfigError(UserError, ValueError):
    """A setting is out of range, or does not go with another."""


class DataError(UserError, ValueError):
    """A schema, an input file or a prepared folder cannot be used."""


class TrainingError(UserError, RuntimeError):
    """Training cannot go on: a loss is not finite, or the data leave nothing to learn or to select
    by.
    """


class DivergedError(TrainingError):
    """A loss, a parameter or a prediction is not finite."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint is absent, damaged, or of another model or data set."""


class RankError(UserError, RuntimeError):
    """The ranks cannot go on together: one is gone or does not answer, or they were
    started unlike.
    """


class ServingError(UserError, RuntimeError):
    """A model cannot be exported, or an exported one is absent, damaged or gives no
    finite score.
    """


class BusyError(UserError, RuntimeError):
    """Another process or thread is writing the same file or folder; the message says which."""


class StoreError(UserError, OSError):
    """An object store cannot be reached, or a file or folder in it cannot be read or written; the
    message names it.
    """


class EngineError(UserError, RuntimeError):
    """An engine cannot run: its cluster is absent, a node sees other files, or a call is lost again
    and again.
    """


class MissingPackageError(UserError, ImportError):
    """A package that is not installed is needed; the message names the extra that installs it."""


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message that is not blank, or the name of its type if
    there is none.
    """
    return next(
        (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
    )


@contextmanager
def extras_needed(by: str = "") -> Iterator[None]:
    """Raises MissingPackageError where an import fails because an extra is not installed.

    Args:
        by: what needs the extra, for the message: "adaftr_fast.train: ".
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        todo = f'pip install "adaftr-fast[{EXTRAS[package]}]"'
        raise MissingPackageError(f"{by}{package} is not installed: {todo}") from error
