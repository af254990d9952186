"""The compile-time benchmark measures what it says; its numbers are not tested."""

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
    return importlib.import_module("compile_time")


@pytest.mark.parametrize("block", ["Residual", "Dense"])
def test_stacks_are_rewritten(bench: ModuleType, block: str) -> None:
    model = bench.stack(getattr(bench, block), depth=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seconds = bench.ours(model, (torch.zeros(1, 3, 16, 16),), verify=True)
    assert list(seconds) == ["trace", "analyze", "rewrite", "verify"]
    assert bench.total(seconds) == pytest.approx(sum(seconds.values()) - seconds["verify"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_slope_of_a_power(bench: ModuleType) -> None:
    assert bench.slope((50, 100, 200), [3 * n**1.5 for n in (50, 100, 200)]) == pytest.approx(1.5)


def test_without_the_peer(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    output, threads = tmp_path / "new" / "out.json", torch.get_num_threads()
    options = ["--models", "squeezenet1_1", "--repeats", "1", "--skip-scaling", "--skip-memory", "-o", str(output)]
    monkeypatch.setattr(sys, "argv", ["compile_time.py", *options])
    try:
        bench.main()
    finally:
        torch.set_num_threads(threads)
    shown = capsys.readouterr()
    assert "torch-pruning is not installed" in shown.err
    assert "squeezenet1_1" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 80
    result = json.loads(output.read_text())
    row = result["models"]["rows"][0]
    assert (row["model"], row["peer_failure"], result["models"]["geometric_mean_ratio"]) == (
        "squeezenet1_1",
        "not installed",
        None,
    )
    assert result["machine"]["threads"] == 1
