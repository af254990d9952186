"""Processes that this package starts."""

from __future__ import annotations

import os
from pathlib import Path

HERE = str(Path(__file__).resolve().parent.parent)
"""The folder that this package lies in; where a child is started by ``-m``, which runs whatever lies in its working directory."""


def child_environment(**more: str) -> dict[str, str]:
    """The environment for a Python that is to find this very package, wherever it is started; ``more`` comes on top.

    >>> child_environment(OMP_NUM_THREADS="1")["OMP_NUM_THREADS"]
    '1'
    """
    given = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    path = os.pathsep.join([HERE, *map(os.path.abspath, given)])
    return {**os.environ, "PYTHONPATH": path, **more}
