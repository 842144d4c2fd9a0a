"""Engines run pure functions, one call per item, in this process or on a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from adaftr_fast.engines.engine import Engine, Local
from adaftr_fast.engines.ray import Ray, ray_engine
from adaftr_fast.errors import ConfigError

ENGINES = ("local", "ray")


@contextmanager
def open_engine(
    name: str, address: str | None = None, *, local: Engine | None = None, ray: Ray | None = None
) -> Iterator[Engine]:
    """Provides an engine during the block.

    Args:
        name: "local", this process, or "ray".
        address: of the Ray cluster, "auto" or HOST:PORT; None is "auto".
        local: the engine "local"; None is ``Local()``.
        ray: the engine "ray"; None is ``Ray()``.

    Raises:
        ConfigError: there is no such engine, or it has no address.
        EngineError, MissingPackageError: as ``ray_engine``.
    """
    if name not in ENGINES:
        raise ConfigError(f"engine: expected one of {', '.join(ENGINES)}, got {name!r}")
    if name == "ray":
        with ray_engine(address or "auto"):
            yield ray or Ray()
        return
    if address is not None:
        raise ConfigError(f"address: goes with engine ray, got address = {address!r} with engine {name}")
    yield local or Local()
