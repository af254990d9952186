"""Files that are never half written."""

from __future__ import annotations

import os
from pathlib import Path


def replace_file(path: Path, *parts: bytes | memoryview) -> None:
    """Write ``parts`` beside ``path``, then rename: ``path`` is as it was, or complete.

    Raises:
        OSError: it cannot be written; nothing is left beside.
    """
    beside = path.with_name(path.name + ".writing")
    try:
        with beside.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
