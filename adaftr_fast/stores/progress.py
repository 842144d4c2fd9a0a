"""The progress of downloads and uploads."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm

SECONDS = 2.0  # shorter transfers show nothing


def transfer_bar(what: str, name: str, size: int) -> tqdm:
    """Returns a bar over ``size`` bytes, shown on a terminal, or a hidden one."""
    from tqdm import tqdm  # of the extra that brings pyarrow

    return tqdm(total=size, unit="B", unit_scale=True, desc=f"{what} {name}", delay=SECONDS, leave=False, disable=None)
