"""Processes that this package starts."""

from __future__ import annotations

import os
from pathlib import Path

HERE = str(Path(__file__).resolve().parent.parent)
"""The folder that this package lies in."""


def child_environment(**more: str) -> dict[str, str]:
    """The environment for a Python that is to find this very package, wherever it is started; ``more`` comes on top.

    >>> child_environment(OMP_NUM_THREADS="1")["OMP_NUM_THREADS"]
    '1'
    """
    path = os.pathsep.join(filter(None, (HERE, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, **more}
