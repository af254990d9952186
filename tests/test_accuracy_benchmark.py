"""The benchmarks of accuracy compare what they say, at the budget they say; what comes out is not tested."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from pdc_fx.data import open_data
from pdc_fx.distill import muon
from pdc_fx.pipeline import rewrite, tie

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def bench() -> ModuleType:
    return importlib.import_module("accuracy")


@pytest.fixture
def task(bench: ModuleType) -> Any:
    from pdc_fx.models import build_model

    torch.manual_seed(0)
    model = build_model(f"{ROOT / 'examples' / 'cifar_resnet.py'}:resnet20").model
    digits = open_data("digits", input_shape=(3, 32, 32))
    return bench.Task(model, digits, torch.zeros(1, 3, 32, 32), 0.5)


ARMS = ["hard", "calibrate", "scratch", "tp-l1", "tp-group", "tp-l1-global", "tp-group-global"]


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_removes_half(bench: ModuleType, task: Any, name: str) -> None:
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    model, clusters = bench.ARMS[name].begin(task)
    tying = tie(model, clusters, mode="hard")
    compact = rewrite(model.eval(), tying.snap(), task.example)
    kept = bench.peer.macs(compact, task.example) / bench.peer.macs(task.model, task.example)
    assert kept == pytest.approx(0.5, abs=0.01)
    assert all(torch.equal(value, before[key]) for key, value in task.model.state_dict().items())


def test_an_arm_says_how_far_muon_moves(bench: ModuleType, task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "SHARE", muon.SHARE)  # put back when this is over
    plain, double = bench.ARMS["calibrate+muon"], bench.ARMS["calibrate+muon+double"]
    assert (double.options, double.mode, double.start) == (plain.options, plain.mode, plain.start)
    for arm, share in ((double, 1.0), (plain, 0.5)):
        arm.begin(task)
        assert share == muon.SHARE


def test_the_counter_is_a_count_by_hand(bench: ModuleType) -> None:
    net = nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.Flatten(), nn.Linear(80, 7))
    assert bench.peer.macs(net, torch.zeros(1, 3, 8, 8)) == 16 * 5 * 27 + 80 * 7


def test_rows_that_are_there_are_not_run_again_and_the_table_fits(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"model": "resnet20", "epochs": 10, "macs_before": 2, "macs_after": 1, "held_out_final": 0.9, "test": 0.9}
    rows = [{**row, "arm": name, "seed": 0, "options": {"amp": "no"}} for name in bench.ARMS]
    output = tmp_path / "accuracy.json"
    output.write_text(json.dumps({"rows": rows}))
    monkeypatch.setattr(bench.subprocess, "run", lambda *a, **k: pytest.fail("ran an arm again"))
    command = ["accuracy.py", "--seeds", "0", "-o", str(output), "--amp"]
    monkeypatch.setattr(sys, "argv", [*command, "bf16"])
    with pytest.raises(SystemExit, match="another precision"):
        bench.main()
    monkeypatch.setattr(sys, "argv", [*command, "no"])
    bench.main()
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 1 + len(bench.ARMS)
    assert max(map(len, shown)) <= 80


def test_a_teacher_that_remembers_answers_each_batch_once(bench: ModuleType, tmp_path: Path) -> None:
    asked: list[int] = []
    teacher = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    teacher.register_forward_hook(lambda *_: asked.append(1))
    one, other = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = [teacher(images) for images in (one, other)]
        asked.clear()
        for _ in range(2):
            remembered = bench.Remembered(teacher, tmp_path)  # of another run
            for images, answer in zip((one, other), expected, strict=True):
                assert torch.equal(remembered(images), answer)
    assert len(asked) == 2


def test_a_teacher_in_half_precision_is_remembered(bench: ModuleType, tmp_path: Path) -> None:
    teacher, images = nn.Conv2d(3, 4, 3), torch.rand(2, 3, 4, 4)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        expected = teacher(images)
        for _ in range(2):
            assert torch.equal(bench.Remembered(teacher, tmp_path)(images), expected.float())
