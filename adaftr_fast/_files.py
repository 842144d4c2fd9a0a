"""Files that are whole or not there."""

import os
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """Writes or replaces ``path``: whole or not at all, also when the power fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
