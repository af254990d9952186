"""What ``pdc_fx`` exports is listed once, typed, and documented with errors and an example, which tests/test_doctests.py runs."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import pkgutil
import re
import sys
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

import pdc_fx
from pdc_fx.cli import main

SOURCE = Path(pdc_fx.__file__).read_text(encoding="utf-8")
PUBLIC = {name: getattr(pdc_fx, name) for name in pdc_fx.__all__}
FUNCTIONS = sorted(name for name, value in PUBLIC.items() if inspect.isfunction(value))
CLASSES = sorted(name for name, value in PUBLIC.items() if inspect.isclass(value))
TELLING = re.compile(
    "(None|Callable|ChannelGroups|ModelGraph|ClusterPlan|Tying|Certificate|Compressed|OnnxInfo|OnnxComparison|BenchmarkReport)\\b"
)
"""What says by its own documentation what is returned, or is a decorator."""
EXEMPT = {
    "render_inspection": {"Returns:", "Raises:"},  # its first line says what it gives, and it raises nothing
    "Compressed": {">>> "},  # compress and save show it
}


def objections(name: str, value: Any) -> list[str]:
    """What the docstring of a public function or class lacks."""
    text = inspect.getdoc(value) or ""
    wanted = {">>> ": "has no example"}
    if inspect.isfunction(value):
        signature = inspect.signature(value)
        sections = re.split(r"^(Args|Attributes|Returns|Raises):$", text, flags=re.MULTILINE)
        args = sections[sections.index("Args") + 1] if "Args" in sections else ""
        found = [
            f"does not say what '{p}' is" for p in signature.parameters if not re.search(rf"\b{p}\b[^:\n]*:", args)
        ]
        given = str(signature.return_annotation)
        wanted |= {"Returns:": f"does not say what it returns ({given})", "Raises:": "does not say what it raises"}
        if TELLING.match(given):
            del wanted["Returns:"]
    else:
        found = [
            f".{key} has no docstring"
            for key, member in vars(value).items()
            if not key.startswith("_")
            and (callable(member) or isinstance(member, (property, staticmethod)))
            and not inspect.getdoc(getattr(value, key))
        ]
        if not re.search(r"^(Args|Attributes):$", text, re.MULTILINE):
            found.append("does not say what it holds")
    return [
        f"{name} {what}"
        for what in (
            *found,
            *(words for part, words in wanted.items() if part not in text and part not in EXEMPT.get(name, ())),
        )
    ]


def test_all_names_are_there_and_listed_everywhere() -> None:
    """In ``__all__``, for type checkers, and in the table of homes."""
    tree = ast.parse(SOURCE)
    (typed,) = (node for node in tree.body if isinstance(node, ast.If))
    for_checkers = {
        alias.asname or alias.name: node.module
        for node in typed.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(pdc_fx.__all__) == sorted({"PdcError", *pdc_fx._HOMES}) == sorted({"PdcError", *for_checkers})
    assert for_checkers == pdc_fx._HOMES
    assert len(set(pdc_fx.__all__)) == len(pdc_fx.__all__)
    assert set(pdc_fx.__all__) <= set(dir(pdc_fx))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pdc_fx.nothing


@pytest.mark.parametrize("name", [*FUNCTIONS, *CLASSES])
def test_it_is_documented(name: str) -> None:
    assert objections(name, PUBLIC[name]) == []


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_is_typed(name: str) -> None:
    """Every parameter and the result; the annotations can be read."""
    function = PUBLIC[name]
    signature = inspect.signature(function)
    assert set(function.__annotations__) == {*signature.parameters, "return"}
    for annotation in function.__annotations__.values():
        ast.parse(annotation, mode="eval")


@pytest.mark.parametrize("name", [*FUNCTIONS, *CLASSES])
def test_it_is_in_the_reference(name: str, root: Path) -> None:
    """docs/reference/python.md names it, or the module that has it."""
    page = (root / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    value = PUBLIC[name]
    assert f"::: {value.__module__}.{name}\n" in page or f"::: {value.__module__}\n" in page


def test_the_objections_themselves() -> None:
    def bare(x: int, y: int = 0) -> int:
        """Adds.

        Args:
            x: a number.
        """
        return x + y

    assert objections("bare", bare) == [
        "bare does not say what 'y' is",
        "bare has no example",
        "bare does not say what it returns (int)",
        "bare does not say what it raises",
    ]

    class Bare:
        """Holds."""

        def method(self) -> None:
            pass

    assert objections("Bare", Bare) == [
        "Bare .method has no docstring",
        "Bare does not say what it holds",
        "Bare has no example",
    ]


def test_every_module_can_be_imported_alone() -> None:
    assert {importlib.import_module(home).__name__ for home in pdc_fx._HOMES.values()} == set(pdc_fx._HOMES.values())


def unresolved(text: str, module: Any) -> list[str]:
    """References in docstrings that lead nowhere, from the module, one of its classes, its package or the whole."""
    own = [value for value in vars(module).values() if inspect.isclass(value) and value.__module__ == module.__name__]
    places = [module, *own, importlib.import_module(module.__name__.rpartition(".")[0] or "pdc_fx"), pdc_fx, builtins]

    def leads(name: str) -> bool:
        first, *rest = name.split(".")
        known = [value for place in places if (value := found(place, first)) is not None]
        if first == "pdc_fx":
            known = [pkgutil.resolve_name(name.rpartition(".")[0] or name)]
            rest = rest[-1:]
        return any(reduce(found, rest, value) is not None for value in known)

    def found(holder: Any, name: str) -> Any:
        """A member, or one that only instances have."""
        return name if name in getattr(holder, "__annotations__", {}) else getattr(holder, name, None)

    return [
        name for name in re.findall(r":(?:func|class|data|meth|attr|mod|exc):`~?([\w.]+)`", text) if not leads(name)
    ]


@pytest.mark.parametrize("name", [m.name for m in pkgutil.walk_packages(pdc_fx.__path__, "pdc_fx.")])
def test_references_lead_somewhere(name: str) -> None:
    module = importlib.import_module(name)
    assert unresolved(inspect.getsource(module), module) == []


def test_a_reference_that_leads_nowhere_is_found() -> None:
    text = ":func:`compress` :class:`pdc_fx.errors.PdcError` :data:`PUBLIC` :func:`gone` :class:`pdc_fx.errors.Gone`"
    assert unresolved(text, sys.modules[__name__]) == ["gone", "pdc_fx.errors.Gone"]


def test_to_import_the_command_does_not_run_it() -> None:
    """As tools do that import every module of a package."""
    assert importlib.import_module("pdc_fx.__main__").main is main
