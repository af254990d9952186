"""Imports inside the package are absolute and go one way."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"pdc_fx": "pdc_fx", "pdc_fx.passes": "passes", "pdc_fx.export": "export"}

# Lowest first. A module may import those of lower layers, and those of its own package; rooms that share a layer know
# nothing of each other. A new module gets its place here.
LAYERS: list[set[str]] = [
    {"pdc_fx.children", "pdc_fx.directory", "pdc_fx.errors", "pdc_fx.words"},
    {"pdc_fx.factories", "pdc_fx.files", "pdc_fx.ir", "pdc_fx.options", "pdc_fx.staging", "pdc_fx.weights"},
    {"pdc_fx.trace", "pdc_fx.data", "pdc_fx.models"},
    {"pdc_fx.rules", "pdc_fx.symbolic"},
    {"pdc_fx.passes"},
    {"pdc_fx.distill", "pdc_fx.export"},
    {"pdc_fx.artifacts", "pdc_fx.loading"},
    {"pdc_fx.pipeline"},
    {"pdc_fx.demo", "pdc_fx.coverage"},
    {"pdc_fx.cli"},
    {"pdc_fx.__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


def source_files() -> dict[str, Path]:
    """Every module of the package by its import name; the links inside ``pdc_fx/`` are not followed."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            if package == "pdc_fx" and parts[0] in {"passes", "export"}:
                continue
            found[".".join([package, *parts]).removesuffix(".__init__")] = path
    return found


FILES = source_files()


def room_of(module: str) -> str:
    """The entry of ``LAYERS`` that a module belongs to: ``pdc_fx.passes.tie`` lives in ``pdc_fx.passes``."""
    return ".".join(module.split(".")[:2])


def imports_of(tree: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    """The modules imported anywhere in a file; ``from p import m`` counts as ``p.m`` where that is a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for alias in node.names:
                member = f"{base}.{alias.name}"
                yield (member if member in FILES else base), node


def objections(module: str, source: str) -> list[str]:
    """What is wrong with the imports of one module, in words."""
    found: list[str] = []
    for target, node in imports_of(ast.parse(source)):
        here, there = room_of(module), room_of(target)
        if target.startswith("."):
            found.append(f"line {node.lineno}: relative import of {target}")
        elif target.split(".")[0] in {"passes", "export"}:
            found.append(f"line {node.lineno}: {target} is imported as pdc_fx.{target}")
        elif target == "pdc_fx":
            found.append(f"line {node.lineno}: import from the module that defines the name, not from pdc_fx")
        elif target.startswith("pdc_fx."):
            if there not in LEVEL:
                found.append(f"line {node.lineno}: {there} has no place in LAYERS of {Path(__file__).name}")
            elif here != there and LEVEL[here] <= LEVEL[there]:
                found.append(
                    f"line {node.lineno}: {module} (layer {LEVEL[here]}) imports {target} (layer {LEVEL[there]})"
                )
    return list(dict.fromkeys(found))  # `from m import a, b` is one import


def test_the_tree_was_read() -> None:
    assert {"pdc_fx", "pdc_fx.errors", "pdc_fx.rules", "pdc_fx.passes", "pdc_fx.export"} <= FILES.keys()
    assert len({path.resolve() for path in FILES.values()}) == len(FILES)


@pytest.mark.parametrize("module", [name for name in FILES if name != "pdc_fx"])
def test_imports_go_one_way(module: str) -> None:
    assert room_of(module) in LEVEL, f"give {room_of(module)} a place in LAYERS"
    found = objections(module, FILES[module].read_text(encoding="utf-8"))
    assert not found, f"{FILES[module].relative_to(ROOT)}: " + "; ".join(found)


@pytest.mark.parametrize("folder", ["passes", "export"])
def test_a_folder_is_imported_under_one_name_only(folder: str) -> None:
    """It is found under its own name, too, by whoever stands in the repository."""
    words = (
        rf"imported as '{folder}'; import it as 'pdc_fx\.{folder}' \(run 'pip install -e \.' in the repository first\)"
    )
    with pytest.raises(ImportError, match=words):
        importlib.import_module(folder)


def test_no_cycles() -> None:
    graph = nx.DiGraph()
    for module, path in FILES.items():
        targets = (target for target, _ in imports_of(ast.parse(path.read_text(encoding="utf-8"))))
        graph.add_edges_from((module, target) for target in targets if target in FILES and target != module)
    graph.remove_nodes_from(["pdc_fx"])  # its lazy exports reach up to everything, on purpose
    cycles = [" -> ".join(cycle) for cycle in nx.simple_cycles(graph)]
    assert not cycles


@pytest.mark.parametrize(
    ("module", "source", "reason"),
    [
        ("pdc_fx.ir", "from pdc_fx.errors import PdcError", None),
        ("pdc_fx.cli", "from pdc_fx import pipeline", None),
        ("pdc_fx.passes.tie", "import pdc_fx.passes.base", None),
        ("pdc_fx.passes.tie", "import torch", None),
        ("pdc_fx.errors", "import pdc_fx.ir", "layer 0"),
        ("pdc_fx.rules.conv", "from pdc_fx.trace import anything", None),
        ("pdc_fx.trace", "from pdc_fx.rules.conv import anything", "layer 2"),
        ("pdc_fx.distill", "from pdc_fx.export.onnx import x, y", "layer 5"),
        ("pdc_fx.passes.tie", "def f():\n    from pdc_fx.export.onnx import x", "layer 4"),
        ("pdc_fx.ir", "from .errors import PdcError", "relative"),
        ("pdc_fx.cli", "from . import pipeline", "relative"),
        ("pdc_fx.distill", "from passes.tie import tie", "pdc_fx.passes.tie"),
        ("pdc_fx.distill", "from pdc_fx import tie", "module that defines"),
        ("pdc_fx.cli", "import pdc_fx.nowhere", "no place"),
    ],
)
def test_the_check_itself(module: str, source: str, reason: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FILES, "pdc_fx.pipeline", ROOT / "pdc_fx/pipeline.py")
    found = objections(module, source)
    assert (not found) if reason is None else (len(found) == 1 and reason in found[0])
