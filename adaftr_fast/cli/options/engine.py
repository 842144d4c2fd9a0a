"""The options of an engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import jsonargparse

from adaftr_fast.cli.options.parser import Parser
from adaftr_fast.errors import ConfigError

if TYPE_CHECKING:
    from adaftr_fast.config import TrainingConfig
    from adaftr_fast.engines.engine import Engine

GRACE_SECONDS = 60.0  # in which an interrupted run saves a snapshot


def add_engine(parser: Parser, help: str) -> None:
    """Adds ``--engine``, which ``help`` describes, and the address of a cluster."""
    parser.add_argument("--engine", type=Literal["local", "ray"], default="local", help=help)
    address = "with --engine ray: HOST:PORT of the cluster (default: auto, the one of this machine)"
    parser.add_argument("--address", type=str | None, help=address)


@contextmanager
def training_engine(
    arguments: jsonargparse.Namespace, training: TrainingConfig, local: Engine, limit: int | None
) -> Iterator[Engine]:
    """Provides the engine that ``add_engine`` asks for, whose calls train one run each.

    Args:
        arguments: the parsed arguments.
        training: the options of the runs.
        local: the engine "local".
        limit: how many runs train on a cluster at the same time at most; None for as many as it has CPUs.

    Raises:
        ConfigError: the runs need a device that a task of the cluster does not have, or ``--out`` is in a store, which
            one machine uploads.
        EngineError, MissingPackageError: as ``open_engine``.
    """
    from adaftr_fast.engines import open_engine
    from adaftr_fast.engines.ray import Ray

    if arguments.engine == "ray" and training.device != "cpu":
        raise ConfigError(f"training.device: expected cpu with --engine ray, got {training.device}")
    if arguments.engine == "ray" and "://" in arguments.out:
        raise ConfigError(f"--out: expected a folder that all nodes see, with --engine ray, got {arguments.out}")
    ray = Ray(cpus=1, limit=limit, grace=GRACE_SECONDS)
    with open_engine(arguments.engine, arguments.address, local=local, ray=ray) as engine:
        yield engine
