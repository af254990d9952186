"""A zoo of compact but realistic networks, written the way other people write them: what each must give at least.

One file a family: :mod:`zoo_dense`, :mod:`zoo_classify`, :mod:`zoo_other`.
"""

from __future__ import annotations

from zoo_classify import CLASSIFY
from zoo_common import Entry
from zoo_dense import DENSE
from zoo_other import OTHER

ZOO: tuple[Entry, ...] = (*DENSE, *CLASSIFY, *OTHER)

__all__ = ["ZOO", "Entry"]
