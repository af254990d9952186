"""What pyproject.toml says about the packages is what the tree holds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
HEAVY = [
    "accelerate",
    "datasets",
    "networkx",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pandas",
    "scipy",
    "sklearn",
    "torch",
    "torchvision",
]

# In pieces, so that this file does not name what it looks for.
FORBIDDEN = {
    "a path of one machine": r"(?<![\w.~}])/(?:wor" + r"k|roo" + r"t|hom" + r"e/\w+|opt/whee" + r"ls)\b/?",
    "the workplace's library": r"(?<!\w)\.lib" + r"rary\b",
    "a package registry's host": r"(?:pypi|pythonhos"
    + r"ted|npm"
    + r"js|anaco"
    + r"nda)\.(?:org|com|io)|download\.pyto"
    + r"rch",
}


def run_python(code: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)


def test_listed_packages_are_the_trees() -> None:
    in_tree = set()
    for package, folder in SETUPTOOLS["package-dir"].items():
        for init in (ROOT / folder).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT / folder).parts
            if package != "pdc_fx" or not {"passes", "export"}.intersection(parts[:1]):
                in_tree.add(".".join([package, *parts]))
    assert sorted(SETUPTOOLS["packages"]) == sorted(in_tree)


def test_every_folder_with_code_is_a_package() -> None:
    folders = {path.parent for folder in ("pdc_fx", "passes", "export") for path in (ROOT / folder).rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


@pytest.mark.parametrize("name", ["passes", "export"])
def test_top_level_name_is_refused(name: str) -> None:
    done = run_python(f"import {name}")
    assert done.returncode != 0
    assert "ImportError" in done.stderr
    assert f"pdc_fx.{name}" in done.stderr


@pytest.mark.parametrize("name", ["passes", "export"])
def test_contract_name_is_accepted_and_loads_once(name: str, tmp_path: Path) -> None:
    done = run_python(f"import sys, pdc_fx.{name} as m; print(m.__file__, {name!r} in sys.modules)", tmp_path)
    assert done.returncode == 0, done.stderr
    file, second_copy = done.stdout.split()
    assert Path(file).resolve().parent.name == name
    assert second_copy == "False"


def test_import_is_light(tmp_path: Path) -> None:
    done = run_python(
        f"import json, sys, pdc_fx; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))", tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


def test_version_is_said_once() -> None:
    from importlib.metadata import version

    assert version("pdc-fx") == PYPROJECT["project"]["version"]


def tracked_files() -> list[Path]:
    """Files that are in the repository or would be added to it; links are left out."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in done.stdout.split("\0") if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


@pytest.mark.parametrize("what", FORBIDDEN)
def test_nothing_tracked_names(what: str) -> None:
    found = []
    for path in tracked_files():
        for number, line in enumerate(path.read_bytes().decode("utf-8", "replace").splitlines(), start=1):
            if re.search(FORBIDDEN[what], line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not found, f"{what}:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("a path of one machine", "see /wor" + "k/main for more"),
        ("a path of one machine", "'/roo" + "t/venv'"),
        ("the workplace's library", "x/.lib" + "rary/env"),
        ("a package registry's host", "https://files.pythonhos" + "ted.org/x"),
        ("a package registry's host", "https://py" + "pi.org/simple"),
    ],
)
def test_forbidden_names_are_seen(what: str, line: str) -> None:
    assert re.search(FORBIDDEN[what], line)


@pytest.mark.parametrize(
    "line",
    [
        "docs/work/index.md",
        "the root/leaf",
        "${HOME}/work/x",
        "pytorch.org's install selector",
        "torch.lib" + "rary.custom_op",
    ],
)
def test_innocent_lines_pass(line: str) -> None:
    assert not [what for what, pattern in FORBIDDEN.items() if re.search(pattern, line)]


def test_ci_is_executable() -> None:
    script = ROOT / ".ci" / "run"
    assert script.read_text(encoding="utf-8").startswith("#!")
    assert os.name == "nt" or os.access(script, os.X_OK)
