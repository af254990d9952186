"""The benchmark for GPUs runs, on a CPU here, and says what it did not run; what comes out is not tested."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
FACTORY = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(256, 4))
"""


@pytest.fixture
def gpu() -> ModuleType:
    return importlib.import_module("gpu")


def run(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path, *options: str) -> dict[str, Any]:
    (folder / "net.py").write_text(FACTORY)
    arguments = [
        "--models",
        f"{folder / 'net.py'}:net=1x3x8x8",
        "--batch-sizes",
        "1",
        "2",
        "--runs",
        "2",
        "--warmup",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments, "-o", str(folder / "gpu.json"), *options])
    gpu.main()
    found: dict[str, Any] = json.loads((folder / "gpu.json").read_text())
    return found


def test_it_measures_what_it_says(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[torch.dtype] = []

    def compiled(module: torch.nn.Module) -> torch.nn.Module:
        seen.append(next(module.parameters()).dtype)
        return module

    monkeypatch.setattr(torch, "compile", compiled)
    found = run(gpu, monkeypatch, tmp_path, "--device", "cpu")
    assert [(row["engine"], row["problem"]) for row in found["rows"]] == [(engine, None) for engine in gpu.ENGINES]
    assert all([timing["batch"] for timing in row["timings"]] == [1, 2] for row in found["rows"])
    assert [row.get("dtype") for row in found["rows"]] == ["bfloat16", "bfloat16", None]
    assert seen == [torch.bfloat16] * 2


def test_without_a_gpu_it_says_so(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = run(gpu, monkeypatch, tmp_path)
    assert found["gpu"] == "none"
    assert [(row["timings"], row["problem"]) for row in found["rows"]] == [([], "PyTorch finds no GPU here")] * 3
    assert capsys.readouterr().out.count("not run: PyTorch finds no GPU here") == 3
    (tmp_path / "gpu.json").write_text('{"gpu": "one that was there before"}')
    assert run(gpu, monkeypatch, tmp_path)["gpu"] == "one that was there before"
