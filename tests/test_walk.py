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
        (["--mean", "127", "--std", "58"], "--mean and --std are of pixels between 0 and 1 [127 58]; divide by 255"),
    ],
)
def test_a_normalisation_that_cannot_be(options: list[str], message: str, tmp_path: Path) -> None:
    code, output = compress(tmp_path, *options)
    assert code == 2
    assert message in " ".join(output.split())
    assert not (tmp_path / "out").exists()


def test_where_training_does_harm_a_note_says_what_no_training_gives(tmp_path: Path) -> None:
    """A few steps at a rate for thousands of them; the network it begins with is not refitted and so no measure."""
    torch.manual_seed(0)
    (tmp_path / "net.py").write_text(SILENT)
    model = small()
    images, labels = next(pdc_fx.data.training_batches(open_data("digits"), 1437, seed=0, epoch=0))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    torch.save(model.state_dict(), tmp_path / "w.pt")
    for rate, epochs, harm in (("1", "1", True), ("0.01", "40", False)):
        more = ["--weights", str(tmp_path / "w.pt"), "--amp", "no", "--lr", rate, "--epochs", epochs, "--overwrite"]
        code, output = compress(tmp_path, *more)
        assert code == 0, output
        assert ("without training (--epochs 0)" in " ".join(output.split())) == harm, output


def test_a_teacher_that_does_not_fit_is_refused_before_any_work(tmp_path: Path) -> None:
    for other, message in (
        (
            "nn.Sequential(nn.Flatten(), nn.Linear(64, 3))",
            "the teacher gives (3,) scores per image, the data has 10 classes",
        ),
        ("nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 10))", "the teacher does not take this input"),
    ):
        (tmp_path / "other.py").write_text(f"from torch import nn\ndef net():\n    return {other}\n")
        code, output = compress(tmp_path, "--teacher-model", f"{tmp_path / 'other.py'}:net")
        assert code == 2
        assert message in " ".join(output.split())


def test_beside_another_teacher_the_network_itself_is_measured(tmp_path: Path) -> None:
    code, output = compress(tmp_path, "--teacher-model", f"{tmp_path / 'net.py'}:net")
    assert code == 0, output
    assert "note: no --teacher-weights" in output
    accuracy = json.loads((tmp_path / "out" / "certificate.json").read_text())["accuracy"]
    assert list(accuracy) == ["original", "teacher", "tied", "compact", "onnx"]
    assert f"{accuracy['original']:.2%}" in next(line for line in output.splitlines() if "accuracy, PyTorch" in line)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "The original network classifies" in page
    assert "top-1, against the original<" in page


def test_other_images_than_those_of_the_run_are_no_verification(tmp_path: Path) -> None:
    """Whether somebody put others in their place, or the certificate was changed."""
    assert compress(tmp_path)[0] == 0
    out = tmp_path / "out"
    certificate = json.loads((out / "certificate.json").read_text())
    certificate["accuracy"]["compact"] += 0.3
    (out / "certificate.json").write_text(json.dumps(certificate))
    done = CliRunner().invoke(app, ["verify", str(out), "--json"])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["passed"] is False
    assert "the accuracy is not the certified one: compact [digits]" in " ".join(done.stderr.split())
    assert CliRunner().invoke(app, ["verify", str(out), "--data", "digits"]).exit_code == 1  # they are the same images
    (out / "certificate.json").write_text(json.dumps({**certificate, "passed": False}))
    assert CliRunner().invoke(app, ["verify", str(out), "--no-data"]).exit_code == 1


def test_images_that_are_not_where_the_recipe_has_them(tmp_path: Path) -> None:
    assert compress(tmp_path)[0] == 0
    recipe = json.loads((tmp_path / "out" / "recipe.json").read_text())
    (tmp_path / "out" / "recipe.json").write_text(json.dumps({**recipe, "data": "folder:gone"}))
    done = CliRunner().invoke(app, ["verify", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert "the images that the recipe names are not to be had" in " ".join(done.stderr.split())
    assert "pass --data with where they are now, or --no-data" in " ".join(done.stderr.split())


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    torch.save(small().state_dict(), tmp_path / "w.pt")
    files = []
    for _ in range(4):  # the order in question has two outcomes
        assert compress(tmp_path, "--overwrite", "--weights", str(tmp_path / "w.pt"))[0] == 0
        files.append((tmp_path / "out" / "model.safetensors").read_bytes())
    assert len(set(files)) == 1


MODEL = ["compress", "{f}/net.py:net", "-o", "o", "--flops-reduction", "0.5"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*MODEL, "--data", "digits", "--params-reduction", "0.5"], "several budgets are given"),
        ([*MODEL, "--data", "{f}"], "did you mean folder:{f}?"),
        ([*MODEL, "--data", "digits", "--input", "1x8x8"], "write 1x1x8x8"),
        (["export", "{f}/m.onnx", "-o", "o.onnx"], "a directory of 'compress'"),
        (["check", "--all", "torchvision", "--only", "alexnet", "-o", "{f}"], "not written by 'pdc-fx check --all'"),
    ],
)
def test_mistakes_are_told_the_way_out(arguments: list[str], words: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(SILENT)
    (tmp_path / "coverage.md").write_text("# How much of my own code is tested\n")
    done = CliRunner().invoke(app, [part.format(f=tmp_path) for part in arguments])
    assert done.exit_code == 2
    assert words.format(f=tmp_path) in " ".join(done.stderr.split())
    assert (tmp_path / "coverage.md").read_text() == "# How much of my own code is tested\n"


def test_a_configuration_may_use_the_names_of_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("wd: 0.001\n")
    assert compress(tmp_path, "--config", str(tmp_path / "c.yaml"))[0] == 0
    assert "weight_decay: 0.001" in (tmp_path / "out" / "config.yaml").read_text()


def test_the_version_is_told() -> None:
    assert re.fullmatch(r"pdc-fx \S+\n", CliRunner().invoke(app, ["--version"]).output)


def test_what_the_library_is_given_by_mistake() -> None:
    model = small()
    with pytest.raises(InputError, match="a seed must not be negative"):
        pdc_fx.check(model, EXAMPLE, seed=-1)
    images: Any = [torch.zeros(1, 8, 8)] * 8
    with pytest.raises(InputError, match=r"one float tensor, the images first \[list\]"):
        pdc_fx.calibrate(model, pdc_fx.analyze(model, EXAMPLE), images, flops_reduction=0.5)


def test_american_spelling_of_what_a_weights_file_says(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "net.py").write_text(SILENT)
    save_file(small().state_dict(), tmp_path / "w.safetensors", metadata={"normalization": "mean 0.25 std 0.5"})
    assert compress(tmp_path, "--weights", str(tmp_path / "w.safetensors"))[0] == 0
    assert json.loads((tmp_path / "out" / "recipe.json").read_text())["mean"] == [0.25]
