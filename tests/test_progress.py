"""Progress of a training: bars on a terminal, plain lines elsewhere, no colours where nobody wants them."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from pdc_fx.cli import render
from pdc_fx.distill import StepReport

RECORD = {"epoch": 1, "loss": 1.25, "accuracy": 0.9, "lr": 0.05, "macs": 2_000_000, "residual": 0.0, "seconds": 90.0}


def shown(monkeypatch: pytest.MonkeyPatch, **options: Any) -> str:
    """What a run of two epochs of three steps writes, seen at the end of its first."""
    written = io.StringIO()
    monkeypatch.setattr(render, "err", Console(file=written, width=80, highlight=False, **options))
    with render.TrainingProgress(2) as progress:
        for step in (1, 2, 3):
            residual = 2e-3 if step == 3 else None
            progress.on_step(StepReport(0, step, 3, 1.25, 0.5, 0.05, 2_000_000, residual))
        progress.on_epoch(RECORD)
        progress.on_step(StepReport(1, 1, 3, 1.2, 0.6, 0.025, 2_000_000, None))
    return written.getvalue()


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    raw = shown(monkeypatch, force_terminal=True, color_system="truecolor")
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", raw)
    # the last picture: the second epoch has begun, and the residual is the one measured last
    last = text[text.rindex("epoch ━") :]
    for part in (
        "2/2",
        "1/3",
        "left",
        "loss 1.200",
        "accuracy 60.0%",
        "learning rate 0.025",
        "residual 0.002",
        "MACs 2 M",
    ):
        assert part in last
    assert max(map(len, re.split(r"[\r\n]+", last))) <= 80
    (line,) = (found for found in re.split(r"[\r\n]+", text) if found.startswith("epoch 1/2:"))  # stays above
    assert (
        line == "epoch 1/2: loss 1.2500, held-out accuracy 90.00%, residual 0, 90 s"
    )  # with the rest of it, it would break
    assert re.search(r"\x1b\[[0-9;]*38;", raw)


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    raw = shown(monkeypatch, force_terminal=True, color_system="truecolor")
    assert "━" in raw
    assert not re.search(r"\x1b\[[0-9;]*[34]8;", raw)


@pytest.mark.parametrize("options", [{"force_terminal": False}, {"force_terminal": True}])
def test_plain_lines_elsewhere(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    monkeypatch.setenv("TERM", "dumb")  # the second case: a terminal that cannot move its cursor
    text = shown(monkeypatch, **options, no_color=True)
    assert text == (
        "epoch 1/2: loss 1.2500, held-out accuracy 90.00%, learning rate 0.05, MACs 2 M, tie residual 0, 90 s, "
        "about 90 s left\n"
    )
