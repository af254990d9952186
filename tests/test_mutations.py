"""The script that plants faults: its table fits the sources, it never touches them, and it says what survived."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return importlib.import_module("mutations")


def test_the_table_fits_the_sources(bench: ModuleType) -> None:
    """Where a source has moved, its faults move along: benchmarks/mutation_table.py."""
    assert bench.outdated() == []


def test_every_fault_was_planted_and_caught(bench: ModuleType) -> None:
    """After a change of the table: python benchmarks/mutations.py."""
    rows = bench.read(bench.RESULTS)
    assert {fault.name: bench.digest(fault) for fault in bench.FAULTS} == {n: r["digest"] for n, r in rows.items()}
    assert [name for name, row in rows.items() if row["result"] != "caught" or row["probe"].get("wrong")] == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"before": "no such text"}, "is 0 times in pdc_fx/files.py"),
        ({"before": "path"}, "times in pdc_fx/files.py, and has to be there once"),
        ({"after": "("}, "is no Python with it"),
        ({"file": "pdc_fx/nowhere.py"}, "nowhere.py"),
        ({"tests": ("tests/test_nowhere.py::test_x",)}, "there is no tests/test_nowhere.py"),
    ],
    ids=["moved", "ambiguous", "no_python", "no_file", "no_tests"],
)
def test_a_fault_that_does_not_fit_is_an_error(bench: ModuleType, change: dict[str, str], words: str) -> None:
    fault = next(f for f in bench.FAULTS if f.file == "pdc_fx/files.py")
    (problem,) = bench.outdated([dataclasses.replace(fault, **change)])
    assert words in problem


def test_a_name_is_used_once(bench: ModuleType) -> None:
    (problem,) = bench.outdated([bench.FAULTS[0]] * 2)
    assert "the name of 2 faults" in problem


def test_one_fault_is_caught_one_survives_and_one_has_no_tests(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a tree of a package, its one module and its tests; processes and copies are real."""
    tree = tmp_path / "tree"
    (tree / "tests").mkdir(parents=True)
    (tree / "half.py").write_text("def half(x):\n    return x / 2\n\n\ndef name():\n    return 'half'\n")
    (tree / "tests" / "test_half.py").write_text("from half import half\n\ndef test_half():\n    assert half(4) == 2\n")
    fault = bench.Fault("wrong", "half.py", "x / 2", "x / 3", "a third", ("tests/test_half.py",))
    found = [
        bench.judge(tree, dataclasses.replace(fault, **change))
        for change in ({}, {"before": "'half'", "after": "'third'"}, {"tests": ("tests/test_half.py::test_none",)})
    ]
    assert [row["result"] for row in found] == ["caught", "survived", "error"]
    assert found[0]["test"] == "tests/test_half.py::test_half"
    assert "the tests did not run" in found[2]["reason"]
    assert "x / 2" in (tree / "half.py").read_text()
    monkeypatch.setattr(bench, "FAULTS", [fault])
    monkeypatch.setattr(bench, "outdated", lambda: [])
    (tmp_path / "out.json").write_text(json.dumps({"faults": [{**found[1], "name": "wrong"}]}))
    monkeypatch.setattr(bench, "copy_of_the_tree", lambda folder: tree)
    monkeypatch.setattr(bench, "load_what_is_heavy", lambda: None)
    assert bench.main(["--trust", "-o", str(tmp_path / "out.json")]) == 0  # what survived before is tried again
    assert bench.read(tmp_path / "out.json")["wrong"]["test"] == "tests/test_half.py::test_half"


def test_a_probe_tells_right_wrong_and_refused(bench: ModuleType) -> None:
    def refuse() -> bool:
        raise ValueError("no")

    assert bench.counted(iter([lambda: True, lambda: False, refuse])) == {"ValueError": 1, "right": 1, "wrong": 1}
