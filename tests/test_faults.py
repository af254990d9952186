"""Runs that are disturbed: what ``benchmarks/faults.py`` does in every phase, here once where it has found something."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from typer.testing import CliRunner

from pdc_fx.cli import app
from pdc_fx.errors import InputError, VerificationError

FACTORY = """
import torch
from torch import nn

def net(num_classes=10):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, num_classes)
    )

net.input_shape = (1, 1, 8, 8)
"""


def compress(folder: Path, *more: str) -> Any:
    (folder / "net.py").write_text(FACTORY)
    fixed = f"compress {folder / 'net.py'}:net --data digits --flops-reduction 0.375 --epochs 1 -b 512 --amp no -o {folder / 'out'}"
    return CliRunner().invoke(app, [*fixed.split(), *more])


@pytest.mark.slow
@pytest.mark.parametrize(
    "error", [InputError("the weights cannot be written: disk full"), VerificationError("the verification failed")]
)
def test_what_was_trained_outlives_an_error_in_the_delivery(tmp_path: Path, error: Exception) -> None:
    with patch("pdc_fx.artifacts.write_model", side_effect=error):
        assert compress(tmp_path).exit_code == error.exit_code  # type: ignore[attr-defined]
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / ".out.partial" / "checkpoint").iterdir())
    result = compress(tmp_path, "--resume")
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.py", "out"]


def test_a_terminal_that_cannot_show_a_name(tmp_path: Path) -> None:
    """In a locale without UTF-8, a model in a folder with a Greek name, and a byte that is no text at all."""
    folder = tmp_path / "έξοδος"
    folder.mkdir()
    (folder / "net.py").write_text(FACTORY)
    poor = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    environment = {**os.environ, **poor, "HOME": "/nonexistent"}
    command = [sys.executable, "-m", "pdc_fx", "inspect", f"{folder}/net.py:net"]
    for output in ("report.html", os.fsdecode(b"a\xff.html")):
        done = subprocess.run([*command, "-o", tmp_path / output], env=environment, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / output).stat().st_size > 10_000
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
