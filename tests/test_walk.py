"""Mistakes that a newcomer made on a first walk through the tour, each of which now has an answer."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from typer.main import get_command
from typer.testing import CliRunner

import pdc_fx
from pdc_fx.cli import app
from pdc_fx.cli.panels import PANELS
from pdc_fx.errors import InputError

EXAMPLE = torch.zeros(1, 1, 8, 8)


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))


@pytest.mark.parametrize("pattern", ["conv1", "layer*", "00"])
def test_a_frozen_name_that_no_module_has(pattern: str) -> None:
    with pytest.raises(InputError, match="no module is called"):
        pdc_fx.analyze(small(), EXAMPLE, frozen=[pattern])


def test_a_percentage_instead_of_a_share() -> None:
    model = small()
    with pytest.raises(InputError, match=r"between 0 and 1, not 50; write 0\.5 for 50%"):
        pdc_fx.plan(model, pdc_fx.analyze(model, EXAMPLE), flops_reduction=50)


def test_groups_of_another_model() -> None:
    groups = pdc_fx.analyze(small(), EXAMPLE)
    with pytest.raises(InputError, match="the groups belong to another model"):
        pdc_fx.plan(nn.Linear(3, 3), groups, flops_reduction=0.5)


def test_help_at_80_columns_names_every_option_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = CliRunner().invoke(app, ["compress", "--help"]).output
    command = get_command(app).commands["compress"]  # type: ignore[attr-defined]
    names = [name for parameter in command.params for name in parameter.opts if name.startswith("--")]
    assert [name for name in names if name not in shown] == []
    assert {parameter.name for parameter in command.params} - PANELS.keys() <= {"model", "help"}
