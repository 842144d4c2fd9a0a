"""The choice of an engine by its name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from adaftr_fast.engines import Engine, Local
from adaftr_fast.errors import ConfigError

ENGINES = ("local", "ray")


@contextmanager
def open_engine(name: str, address: str | None = None, **ray: Any) -> Iterator[Engine]:
    """Provides an engine during the block.

    Args:
        name: "local", this process, or "ray".
        address: of the Ray cluster, "auto" or HOST:PORT; None is "auto".
        ray: the arguments of ``Ray``.

    Raises:
        ConfigError: there is no such engine, or it has no address.
        EngineError, MissingPackageError: as ``extras.ray.engine.ray_engine``.
    """
    if name not in ENGINES:
        raise ConfigError(f"engine: expected one of {', '.join(ENGINES)}, got {name!r}")
    if name == "ray":
        from adaftr_fast.extras.ray.engine import Ray, ray_engine

        with ray_engine(address or "auto"):
            yield Ray(**ray)
        return
    if address is not None:
        raise ConfigError(
            f"address: goes with engine ray, got address = {address!r} with engine {name}"
        )
    yield Local()
