"""The committed artifacts are what their certificates say, measured by a script that knows nothing of pdc-fx."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
ARTIFACTS = sorted((BENCHMARKS / "artifacts").iterdir())


def evaluate(directory: Path, shared: Path) -> subprocess.CompletedProcess[str]:
    script = str(BENCHMARKS / "evaluate.py")
    data = str(shared / "data" / "cifar10")
    return subprocess.run(
        [sys.executable, script, str(directory), "--data", data, "--json"], capture_output=True, text=True
    )


@pytest.mark.parametrize("directory", ARTIFACTS, ids=lambda path: path.name)
def test_an_artifact_has_its_certified_accuracy(directory: Path, shared_dir: Path) -> None:
    result = evaluate(directory, shared_dir)
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads(result.stdout)
    assert found["images"] == 10000
    assert found["accuracy"] == pytest.approx(found["certified"]["onnx"], abs=0.0005)
    assert found["macs_removed"] >= 0.49


def test_a_file_that_was_changed_is_noticed(shared_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(ARTIFACTS[0], tmp_path / "copy")
    (copy / "recipe.json").write_text((copy / "recipe.json").read_text() + "\n")
    result = evaluate(copy, shared_dir)
    assert result.returncode == 1
    assert json.loads(result.stdout)["changed"] == ["recipe.json"]
