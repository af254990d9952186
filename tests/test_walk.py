"""Mistakes that a newcomer made on a first walk through the tour, each of which now has an answer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from data_files import different_sizes
from torch import nn
from typer.main import get_command
from typer.testing import CliRunner

import pdc_fx
from pdc_fx.cli import app
from pdc_fx.cli.panels import PANELS
from pdc_fx.data import open_data
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


COMMANDS = get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_at_80_columns_shows_every_name_and_choice_in_full(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = CliRunner().invoke(app, [command, "--help"]).output
    for parameter in COMMANDS[command].params:
        names = [name for name in (*parameter.opts, *parameter.secondary_opts) if name.startswith("-")]
        assert [name for name in names if name not in re.split(r"[\s,]+", shown)] == []
    assert "…" not in shown
    assert re.findall(r"<[a-z][^>\n]*\n", shown) == []  # what an option takes, broken over two lines


def test_every_option_of_compress_stands_in_a_panel() -> None:
    assert {parameter.name for parameter in COMMANDS["compress"].params} - PANELS.keys() <= {"model", "help"}


SILENT = """
from torch import nn

def net(num_classes=10):
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, num_classes))
"""


def compress(tmp_path: Path, *options: str, data: str = "digits") -> tuple[int, str]:
    """``compress`` of a model that does not say what its input is, without training, and what it printed."""
    (tmp_path / "net.py").write_text(SILENT)
    fixed = ["--data", data, "--flops-reduction", "0.5", "--epochs", "0", "--start", "calibrate"]
    done = CliRunner().invoke(
        app, ["compress", f"{tmp_path / 'net.py'}:net", *fixed, "-o", str(tmp_path / "out"), *options]
    )
    return done.exit_code, done.output


def test_where_nobody_says_the_shape_of_the_input_the_images_do(tmp_path: Path) -> None:
    code, output = compress(tmp_path, "--mean", "0.25", "--std", "0.5")
    assert code == 0, output
    recipe = json.loads((tmp_path / "out" / "recipe.json").read_text())
    assert (recipe["mean"], recipe["std"]) == ([0.25], [0.5])


def test_where_nobody_says_it_the_images_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def counted(spec: str, **options: Any) -> Any:
        opened.append(spec)
        return open_data(spec, **options)

    monkeypatch.setattr(pdc_fx.data, "open_data", counted)
    assert compress(tmp_path)[0] == 0
    assert opened == ["digits"]


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_colour_images_for_a_grey_model_are_spoken_of(kind: str, tmp_path: Path) -> None:
    data = different_sizes(tmp_path, kind)
    assert open_data(data, input_shape=(1, 8, 8)).train.stored_shape == (3, 20, 24)
    code, output = compress(
        tmp_path, "--input", "1x1x8x8", "--num-classes", "2", "--calibration-images", "8", data=data
    )
    assert code == 0, output
    assert "images: colour ones are made grey, as the model's input is" in output
    assert "images:" not in compress(tmp_path, "--overwrite")[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mean", "0.5"], "--mean and --std go together"),
        (["--mean", "a", "--std", "0.5"], "write 0.485,0.456,0.406"),
        (["--mean", "0.5,0.5,0.5", "--std", "1,1,1"], "mean and std need 1 number"),
        (["--mean", "0.5", "--std", "0"], "std must be positive"),
        (["--mean", "nan", "--std", "1"], "mean and std need 1 number"),
    ],
)
def test_a_normalisation_that_cannot_be(options: list[str], message: str, tmp_path: Path) -> None:
    code, output = compress(tmp_path, *options)
    assert code == 2
    assert message in " ".join(output.split())
    assert not (tmp_path / "out").exists()
