"""The registry of rules as it was before a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pdc_fx.rules import literals, registry, resize
from pdc_fx.trace import LEAVES


@contextmanager
def registry_restored() -> Iterator[None]:
    """Take back what is registered inside."""
    tables = (registry._RULES, literals._LITERALS, registry._MOVES, registry._TRAITS, LEAVES)
    before, sizes = [table.copy() for table in tables], list(resize.TABLE)
    try:
        yield
    finally:
        for table, old in zip(tables, before, strict=True):
            table.clear()
            table.update(old)  # type: ignore[arg-type]
        resize.TABLE[:] = sizes
