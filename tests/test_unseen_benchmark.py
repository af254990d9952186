"""The benchmark on unseen images keeps them unseen, and measures what it says; what comes out is not tested."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pdc_fx.data import open_data


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = importlib.import_module("unseen")
    monkeypatch.setattr(module, "RUNS", tmp_path)
    monkeypatch.setattr(module, "SAME", {**module.SAME, "compile": False})
    return module


def test_figures_are_those_of_the_formulas(bench: ModuleType) -> None:
    torch.manual_seed(0)
    ours, theirs, labels = torch.randn(50, 10), torch.randn(50, 10), torch.arange(50) % 10
    p, q = theirs.softmax(1).double(), ours.softmax(1).double()
    found = bench.judged(ours, theirs, labels)
    assert found["divergence"] == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-5)
    assert found["cross_entropy"] == pytest.approx(float(-q[torch.arange(50), labels].log().mean()), rel=1e-5)
    assert found["accuracy"] == float((q.argmax(1) == labels).double().mean())
    assert found["agreement"] == float((q.argmax(1) == p.argmax(1)).double().mean())
    assert bench.judged(theirs, theirs, labels)["divergence"] == pytest.approx(0, abs=1e-6)


def test_nobody_trains_on_what_judges_and_rows_are_run_once(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[tuple[Any, float]] = []
    weights: list[Tensor] = []

    class Training(bench.TiedTraining):  # type: ignore[name-defined, misc]
        def run(self, *, resume: bool = False) -> Any:
            trained.append((self.data.train, self.options.lr))
            first = next(self.model.parameters())
            weights.append(first.detach().clone())
            result = super().run(resume=resume)
            weights.append(first.detach().clone())
            return result

    judged: list[Any] = []

    def logits(model: nn.Module, images: Any, data: Any) -> Tensor:
        judged.append(images)
        return torch.randn(len(images), 10)

    monkeypatch.setattr(bench, "TiedTraining", Training)
    monkeypatch.setattr(bench, "logits", logits)
    output = tmp_path / "unseen.json"
    command = [
        "unseen.py",
        "--data",
        "digits",
        "--epochs",
        "1",
        "--teacher-epochs",
        "1",
        "1",
        "--rates",
        "0.02",
        "0.01",
        "--arms",
        "hard",
    ]
    monkeypatch.setattr(sys, "argv", [*command, "-o", str(output)])
    bench.main()
    assert [rate for _, rate in trained] == [0.05, 0.05, 0.02, 0.01]
    begun, ended, again, _ = weights[:4]  # the teacher goes on where its first training ended
    assert torch.equal(ended, again)
    assert not torch.equal(begun, ended)
    digits = open_data("digits", input_shape=(3, 32, 32)).train
    everything = [image.numpy().tobytes() for image, _ in digits]
    seen = {image.numpy().tobytes() for images, _ in trained for image, _ in images}
    unseen = {image.numpy().tobytes() for images in judged for image, _ in images}
    twice = len(everything) - len(set(everything))
    assert len(seen & unseen) <= twice
    assert seen | unseen == set(everything)
    assert [row["lr"] for row in json.loads(output.read_text())["rows"]] == [0.02, 0.01]
    shown = capsys.readouterr().out.splitlines()
    assert max(map(len, shown)) <= 80
    bench.main()
    assert [rate for _, rate in trained[4:]] == [0.05, 0.05]  # the teacher, from its checkpoints
    assert capsys.readouterr().out.splitlines() == shown
    monkeypatch.setattr(bench, "AMP", "another")
    with pytest.raises(SystemExit, match="another teacher"):
        bench.main()
