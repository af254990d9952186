"""The examples in docstrings run, each module under its real import name."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest

import pdc_fx
from pdc_fx.rules import registry, resize
from pdc_fx.trace import LEAVES

FOUND = (info.name for info in pkgutil.walk_packages(pdc_fx.__path__, "pdc_fx."))
MODULES = ["pdc_fx", *sorted(name for name in FOUND if not name.endswith("__main__"))]


def test_modules_were_found() -> None:
    assert {"pdc_fx.errors", "pdc_fx.rules", "pdc_fx.passes", "pdc_fx.export"} <= set(MODULES)


@pytest.fixture
def rules_as_they_were() -> Iterator[None]:
    """Examples may register rules."""
    tables: list[Any] = [registry._RULES, registry._MOVES, registry._TRAITS, LEAVES, resize.TABLE]
    copies = [type(table)(table) for table in tables]
    yield
    for table, copy in zip(tables, copies, strict=True):
        table.clear()
        (table.extend if isinstance(table, list) else table.update)(copy)


@pytest.mark.usefixtures("rules_as_they_were")
@pytest.mark.parametrize("name", MODULES)
def test_doctests(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL
    result = doctest.testmod(importlib.import_module(name), optionflags=options)
    assert result.failed == 0, capsys.readouterr().out
