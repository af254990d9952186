"""The examples in docstrings run, each module under its real import name."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest

import pdc_fx
from pdc_fx.rules import base, resize

FOUND = (info.name for info in pkgutil.walk_packages(pdc_fx.__path__, "pdc_fx."))
MODULES = ["pdc_fx", *sorted(name for name in FOUND if not name.endswith("__main__"))]


def test_modules_were_found() -> None:
    assert {"pdc_fx.errors", "pdc_fx.rules", "pdc_fx.passes", "pdc_fx.export"} <= set(MODULES)


@pytest.fixture
def rules_as_they_were() -> Iterator[None]:
    """Examples may register rules."""
    registries: list[Any] = [base._RULES, base._MOVES, base.LEAVES, resize.TABLE]
    copies = [type(registry)(registry) for registry in registries]
    yield
    for registry, copy in zip(registries, copies, strict=True):
        registry.clear()
        (registry.extend if isinstance(registry, list) else registry.update)(copy)


@pytest.mark.usefixtures("rules_as_they_were")
@pytest.mark.parametrize("name", MODULES)
def test_doctests(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL
    result = doctest.testmod(importlib.import_module(name), optionflags=options)
    assert result.failed == 0, capsys.readouterr().out
