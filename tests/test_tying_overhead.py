"""The benchmark of tying measures what it says; its times are not tested."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return importlib.import_module("tying_overhead")


def test_a_tiny_run(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output, threads = tmp_path / "new" / "out.json", torch.get_num_threads()
    options = ["--models", "resnet20", "--threads", "1", "--pairs", "1", "--batch", "2", "-o", str(output)]
    monkeypatch.setattr(sys, "argv", ["tying_overhead.py", *options])
    try:
        bench.main()
    finally:
        torch.set_num_threads(threads)
    shown = capsys.readouterr().out
    assert "resnet20" in shown
    assert max(map(len, shown.splitlines())) <= 80
    row = json.loads(output.read_text())["rows"][0]
    assert row["time"]["1"]["tied"] / row["time"]["1"]["plain"] == pytest.approx(row["time"]["1"]["ratio"])
    assert row["memory"]["passed"]
    assert row["memory"]["alone"] > 0


def test_the_peak_of_allocations(bench: ModuleType) -> None:
    def work() -> None:
        first = torch.zeros(1000)
        second = torch.zeros(500)
        del first, second
        torch.zeros(1200)

    assert bench.peak(work) == 6000


def test_only_one_arm_is_tied(bench: ModuleType) -> None:
    plain, tied = bench.arms(bench.SETTINGS["resnet20"], 2)
    for arm in (plain, tied):
        arm.tie()
        arm.step()
    assert plain.tying is None
    assert float(tied.tying.residual()) == 0.0
