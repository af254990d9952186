"""The command line as a user meets it: real processes' output, exit codes, and what is on disk afterwards."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import yaml
from extension import registry_restored
from onnx import numpy_helper
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner, Result

from pdc_fx import demo
from pdc_fx.cli import app, main
from pdc_fx.cli.render import print_json, warn_of_loss
from pdc_fx.data import open_data
from pdc_fx.directory import CERTIFICATE, CONFIG, METRICS, ONNX, RECIPE, REPORT, WEIGHTS
from pdc_fx.distill import accuracy
from pdc_fx.errors import ArtifactError, Interrupted
from pdc_fx.export import store
from pdc_fx.export import verify as verification
from pdc_fx.files import sha256
from pdc_fx.loading import load
from pdc_fx.models import build_model

FACTORY = """
import torch
from torch import nn

def net(num_classes=10):
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, num_classes),
    )

net.input_shape = (1, 1, 8, 8)

def broken():
    raise RuntimeError("no such luck")

class Dated(nn.Sequential):
    def __init__(self, num_classes=10):
        super().__init__(*net(num_classes))

    def get_extra_state(self):
        return {"made": 2026}

    def set_extra_state(self, state):
        pass

Dated.input_shape = (1, 1, 8, 8)

def not_a_module():
    return 3

def alone():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten())

class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(1, 8, 3), nn.Conv2d(2, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x, y):
        return self.head(self.one(x) + self.two(y))

class OwnGrid(nn.Module):
    # makes float32 tensors of its own

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.head(self.first(x)) @ torch.ones(6, 6, dtype=torch.float32)

class Single(OwnGrid):
    def forward(self, x):
        assert x.dtype == torch.float32
        return self.head(self.first(x))

class Auxiliary(OwnGrid):
    # with a head that runs in training only

    def __init__(self):
        super().__init__()
        self.other = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.first(x)
        return (self.head(x), self.other(x)) if self.training else self.head(x)

class Draws(nn.Module):
    # in training mode its compact form draws other numbers

    def __init__(self, num_classes=10):
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, num_classes)

    def forward(self, x):
        x = self.stem(x)
        return self.head((x + torch.rand_like(x) if self.training else x).relu().mean((2, 3)))

Draws.input_shape = (1, 1, 8, 8)

def leaves():
    raise SystemExit(0)

class Leaving(OwnGrid):
    def forward(self, x):
        raise SystemExit(0)

class Talking(OwnGrid):
    def forward(self, x):
        print("here I am")
        return super().forward(x)

def negative():
    model = net()
    model[1].running_var[3] = -1
    return model

negative.input_shape = (1, 1, 8, 8)

class Untranslated(nn.Module):
    # ONNX has no such function

    def __init__(self, num_classes=10):
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, num_classes)

    def forward(self, x):
        noise = torch.special.bessel_j0(x.detach().mean((1, 2, 3)))
        return self.head(self.stem(x).relu().mean((2, 3))) + noise[:, None]

Untranslated.input_shape = (1, 1, 8, 8)

def half():
    return net().half()

half.input_shape = net.input_shape

def interrupted():
    raise KeyboardInterrupt  # as Python does on Ctrl-C, but for where signals are ignored: behind a shell's &
"""
WRONG_RULE = """
import pdc_fx
import torch
from torch import nn

class Net(nn.Sequential):
    def forward(self, x):
        return self[1](self[0](x).softmax(1))

def net():
    torch.manual_seed(0)
    return Net(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 4, 1))

net.input_shape = (1, 1, 8, 8)
pdc_fx.rule("softmax")(lambda site: site.channels(site.argument(0, "input")).then(site.key))
"""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli")
    (path / "net.py").write_text(FACTORY)
    return path


@pytest.fixture(scope="module")
def spec(folder: Path) -> str:
    return f"{folder / 'net.py'}:net"


def options(out: Path, **changes: Any) -> list[object]:
    values = {
        "data": "digits",
        "flops-reduction": 0.5,
        "epochs": 1,
        "batch-size": 64,
        "amp": "no",
        "mode": "hard",
        "features": "none",  # the teacher is not trained: matching its maps leaves filters that never fire
        "output": out,
    } | changes
    return [part for key, value in values.items() if value is not None for part in (f"--{key}", value)]


@pytest.fixture(scope="module")
def compressed(folder: Path, spec: str) -> Path:
    out = folder / "out"
    result = run("compress", spec, *options(out), "--json")
    assert result.exit_code == 0, result.stderr
    certificate = json.loads(result.stdout)
    assert certificate["passed"]
    return out


def test_output_directory(compressed: Path) -> None:
    names = {p.name for p in compressed.iterdir()}
    assert names == {WEIGHTS, RECIPE, ONNX, CERTIFICATE, REPORT, CONFIG, "metrics.jsonl"}
    assert [p for p in compressed.parent.iterdir() if p.name.startswith(".")] == []
    assert len({p.stat().st_mode for p in compressed.iterdir()}) == 1
    certificate = json.loads((compressed / CERTIFICATE).read_text())
    assert certificate["tied_vs_compact"]["max_rel_error"] < 1e-9
    assert abs(1 - certificate["macs_after"] / certificate["macs_before"] - 0.5) <= 0.01
    tied, compact, deployed = (certificate["accuracy"][k] for k in ("tied", "compact", "onnx"))
    assert abs(tied - compact) <= 0.001
    assert abs(compact - deployed) <= 0.001
    page = (compressed / REPORT).read_text()
    assert not re.findall(r"(?:src|href)=[\"']?https?:", page)


@pytest.mark.parametrize("command", [["verify"], ["export", "-o", "{t}/x.onnx"]])
def test_a_model_that_has_moved_is_named_again(
    command: list[str], compressed: Path, folder: Path, tmp_path: Path
) -> None:
    line = [*(part.format(t=tmp_path) for part in command), compressed]
    moved = (folder / "net.py").rename(folder / "moved.py")
    try:
        result = run(*line)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "there is no such file" in result.stderr
        assert "pass --model with where it is now" in " ".join(result.stderr.split())
        assert run(*line, "--model", f"{moved}:net").exit_code == 0
    finally:
        moved.rename(folder / "net.py")


def test_a_factory_of_half_precision_is_taken_everywhere(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "half[bold]"  # and a name that is no markup
    done = run("compress", f"{folder / 'net.py'}:half", *options(out, epochs=0))
    assert done.exit_code == 0, done.stderr
    assert "half[bold]" in "".join(done.stdout.split())
    for line in (["verify", out], ["export", out, "-o", tmp_path / "x.onnx"]):
        result = run(*line)
        assert result.exit_code == 0, result.stderr


def test_the_keys_that_are_documented_are_those_that_are_printed(compressed: Path, spec: str, tmp_path: Path) -> None:
    text = (Path(__file__).resolve().parent.parent / "docs" / "reference" / "json.md").read_text(encoding="utf-8")
    sections = {part.partition("\n")[0]: part for part in text.split("\n## ")[1:]}
    lines = {
        "check": ["check", spec],
        "verify": ["verify", compressed],
        "export": ["export", compressed, "-o", tmp_path / "x.onnx"],
        "bench": ["bench", compressed, "--runs", 1, "--warmup", 0, "-o", tmp_path / "b.json"],
        "inspect": ["inspect", spec],
    }
    printed = {name: json.loads(run(*line, "--json").stdout) for name, line in lines.items()}
    printed["compress"] = json.loads((compressed / CERTIFICATE).read_text())
    for name, found in printed.items():
        rows = re.findall(r"^\| (`.*?) \|", sections[name], flags=re.MULTILINE)
        documented = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
        assert documented == set(found), name
    words = {*re.findall(r"`(\w+)`", sections["metrics.jsonl"])}
    records = [json.loads(line) for line in (compressed / METRICS).read_text().splitlines()]
    assert {"epoch", "start", "network", "untrained"} <= {record["kind"] for record in records} <= words
    assert all(set(record) <= words for record in records if record["kind"] == "epoch")


@pytest.mark.parametrize(("name", "words"), [("Untranslated", "bessel_j0"), ("Dated", "keeps a dict in its state")])
def test_what_cannot_be_delivered_is_refused_before_training(
    name: str, words: str, folder: Path, tmp_path: Path
) -> None:
    result = run("compress", f"{folder / 'net.py'}:{name}", *options(tmp_path / "x", epochs=1))
    said = " ".join(result.stderr.split())
    assert result.exit_code == 2
    assert "training was not begun" in said
    assert words in said


def test_json_has_no_infinity(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": [float("inf"), 1.0], "b": {"c": float("nan")}})
    assert capsys.readouterr().out == '{"a": [null, 1.0], "b": {"c": null}}\n'


def test_what_a_run_begins_with_is_said(spec: str, tmp_path: Path) -> None:
    result = run("compress", spec, *options(tmp_path / "x", lr=5.0), "--resume")
    assert result.exit_code == 0, result.stderr
    said = " ".join(result.stderr.split())
    assert f"note: no checkpoint of an interrupted run into '{tmp_path / 'x'}', so the run begins" in said
    note, training = (
        "note: no --weights, so the network is taken with those that its factory gives it",
        "before training:",
    )
    assert 0 <= said.find(note) < said.find(training)  # while there is time to stop it


def test_training_that_ends_below_its_start_is_noted(capsys: pytest.CaptureFixture[str]) -> None:
    def said(before: float | None, residual: float, after: float) -> str:
        warn_of_loss(
            [
                {"kind": "network", "reason": ""},
                {"kind": "start", "accuracy": before, "residual": residual},
                {"kind": "epoch", "accuracy": 0.1},
                {"kind": "epoch", "accuracy": after},
            ]
        )
        return capsys.readouterr().err

    assert "ended at a held-out accuracy of 70.00%, below the 80.00% that it began with" in said(0.8, 0.0, 0.7)
    assert said(0.8, 0.0, 0.8) == ""
    assert said(0.8, 0.3, 0.7) == ""  # it was not tied yet
    assert said(None, 0.0, 0.7) == ""


@pytest.mark.parametrize("final", [0.5, 0.695, 0.8])
def test_statistics_that_cost_accuracy_are_noted(final: float, capsys: pytest.CaptureFixture[str]) -> None:
    warn_of_loss([{"kind": "epoch", "accuracy": 0.7}, {"kind": "final", "accuracy": final}])
    said = capsys.readouterr().err
    assert ("held-out accuracy is 50.00%, and it was 70.00% before" in said) == (final == 0.5)


def test_verify_reads_everything_again(compressed: Path) -> None:
    result = run("verify", compressed)
    assert result.exit_code == 0, result.stderr
    assert "test accuracy, onnx" in result.stdout
    assert max(len(line) for line in result.stdout.splitlines()) <= 80


def test_what_a_directory_is_not_for_is_answered(compressed: Path, tmp_path: Path) -> None:
    """Another model, and images of another kind."""
    (tmp_path / "colour.py").write_text(
        "import torch\n\ndef net(num_classes=10):\n    return torch.nn.Conv2d(3, 8, 3)\n"
    )
    other = run("verify", compressed, "--model", f"{tmp_path / 'colour.py'}:net")
    assert other.exit_code == 2
    assert "pass the model that was compressed (--model MODEL)" in " ".join(other.stderr.split())
    copy = damaged(compressed, tmp_path)
    recipe = json.loads((copy / RECIPE).read_text())
    (copy / RECIPE).write_text(json.dumps({**recipe, "mean": [0.5] * 3, "std": [0.5] * 3}))
    grey = run("verify", copy, "--data", "digits")
    assert grey.exit_code == 2
    assert "trained on images of 3 channels, and these are grey ones [digits]" in " ".join(grey.stderr.split())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("when", ["in Python", "in an import"])
def test_a_signal_ends_a_command_with_its_own_code(
    when: str, number: int, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(*_: Any) -> None:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            if when == "in Python":
                raise
            raise ImportError("initialization failed") from None  # as a C extension makes of it

    monkeypatch.setattr("pdc_fx.cli.deploy.open_model", work)
    monkeypatch.setattr(sys, "argv", ["pdc-fx", "export", f"{folder / 'net.py'}:net", "-o", str(folder / "x.onnx")])
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 128 + number
    assert capsys.readouterr().err == "interrupted\n"
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_failure_after_training_says_what_is_kept(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pdc_fx.artifacts.write_model", full)
        result = run("compress", spec, *options(tmp_path / "x", epochs=1))
    assert result.exit_code == 2
    assert f"what was trained is kept in '{tmp_path / '.x.partial'}'; --resume goes on from there" in " ".join(
        result.stderr.split()
    )
    resumed = run("compress", spec, *options(tmp_path / "x", epochs=1), "--resume")
    assert resumed.exit_code == 0, resumed.stderr  # the same seed gives the same weights of the factory


def test_threads_are_bounded(compressed: Path) -> None:
    result = run("bench", compressed, "--threads", 100000)
    assert result.exit_code == 2
    assert "the number of threads must be from 1 to" in " ".join(result.stderr.split())


def test_without_a_normalisation_that_of_the_data_counts(compressed: Path, tmp_path: Path) -> None:
    copy = damaged(compressed, tmp_path)
    recipe, certificate = (json.loads((copy / name).read_text()) for name in (RECIPE, CERTIFICATE))
    (copy / RECIPE).write_text(json.dumps({key: recipe[key] for key in recipe if key not in ("mean", "std")}))
    certificate["files"][RECIPE] = sha256(copy / RECIPE)
    (copy / CERTIFICATE).write_text(json.dumps(certificate))
    result = run("verify", copy, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)["accuracy"]
    assert found == {name: pytest.approx(certificate["accuracy"][name], abs=1e-3) for name in ("compact", "onnx")}


def test_what_limits_a_comparison_is_noted(compressed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "TOLERANCES", {"float32": 1e-12})
    result = run("verify", compressed, "--no-data")
    assert result.exit_code == 1
    assert re.match(
        r"note: PyTorch's own float32 is a relative .* from its float64 .*, 1e-12 is allowed\n", result.stderr
    )


@pytest.mark.parametrize(
    "chosen",
    [{"start": "calibrate", "epochs": 0}, {"epochs": 0}, {"start": "fold", "epochs": 0}, {"start": "calibrate"}],
)
def test_starts_that_need_no_training(spec: str, tmp_path: Path, chosen: dict[str, Any]) -> None:
    out = tmp_path / "out"
    result = run("compress", spec, *options(out, **chosen), "--json")
    assert result.exit_code == 0, result.stderr
    certificate = json.loads(result.stdout)
    assert certificate["passed"]
    assert set(certificate["accuracy"]) == {"teacher", "tied", "compact", "onnx"}
    assert {p.name for p in out.iterdir()} == {WEIGHTS, RECIPE, ONNX, CERTIFICATE, REPORT, CONFIG, "metrics.jsonl"}
    lines = (out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines].count("epoch") == chosen.get("epochs", 1)
    assert run("verify", out).exit_code == 0


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"epochs": 0, "start": "model"}, "training takes at least one epoch"),
        ({"epochs": 0, "start": "calibrate", "calibration-images": 10**6}, "cannot calibrate on 1000000"),
        ({"start": "fold", "mode": "progressive"}, "cannot keep those of start 'fold'; use 'hard'"),
    ],
)
def test_starts_that_are_refused(spec: str, tmp_path: Path, chosen: dict[str, Any], words: str) -> None:
    result = run("compress", spec, *options(tmp_path / "out", **chosen))
    assert result.exit_code == 2
    assert words in result.stderr.replace("\n", " ")
    assert list(tmp_path.iterdir()) == []


def damaged(compressed: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in compressed.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def test_verify_catches_a_flipped_onnx_weight(compressed: Path, tmp_path: Path) -> None:
    copy = damaged(compressed, tmp_path)
    proto = onnx.load(copy / ONNX)
    weight = max((i for i in proto.graph.initializer if len(i.dims) == 4 and i.dims[1] > 1), key=lambda i: i.dims[0])
    values = numpy_helper.to_array(weight).copy()
    values.flat[int(abs(values).argmax())] *= -1
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(proto, copy / ONNX)
    result = run("verify", copy)
    assert result.exit_code == 1
    assert "does not compute what the model does" in result.stderr
    assert re.search(r"\bConv\b.*\b3\b", result.stderr.replace("\n", " "))  # the second convolution is module '3'


def test_verify_catches_a_flipped_weight_of_the_model(compressed: Path, tmp_path: Path) -> None:
    copy = damaged(compressed, tmp_path)
    state = load_file(copy / WEIGHTS)
    state["3.weight"].view(-1)[int(state["3.weight"].abs().argmax())] *= -1
    save_file(state, copy / WEIGHTS)
    result = run("verify", copy)
    assert result.exit_code == 1
    assert re.search(r"\bConv\b.*\b3\b", result.stderr.replace("\n", " "))
    with pytest.raises(ArtifactError, match="changed since"):
        load(torch.nn.Identity(), copy)


def test_load_rebuilds_the_compact_model(compressed: Path, spec: str) -> None:
    from pdc_fx.factories import factory

    compact = load(factory(spec), compressed)
    plan = json.loads((compressed / RECIPE).read_text())["plan"]
    assert sum(p.numel() for p in compact.parameters()) < 2500
    assert plan["macs_after"] < plan["macs_before"]
    assert compact(torch.zeros(5, 1, 8, 8)).shape == (5, 10)


def test_export_of_a_directory(compressed: Path, tmp_path: Path) -> None:
    result = run("export", compressed, "-o", tmp_path / "m.onnx", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["verification"]["passed"]
    assert found["path"] == str(tmp_path / "m.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    metadata = {prop.key: prop.value for prop in onnx.load(tmp_path / "m.onnx").metadata_props}
    plan = json.loads((compressed / RECIPE).read_text())["plan"]
    assert metadata["pdc_fx.recipe_sha256"] == sha256(compressed / RECIPE)
    assert (metadata["pdc_fx.macs"], metadata["pdc_fx.dense_macs"]) == (
        str(plan["macs_after"]),
        str(plan["macs_before"]),
    )
    assert json.loads(metadata["pdc_fx.classes"]) == [str(digit) for digit in range(10)]
    assert len(json.loads(metadata["pdc_fx.mean"])) == len(json.loads(metadata["pdc_fx.std"])) == 1
    summary = json.loads(metadata["pdc_fx.certificate"])
    assert summary["tied_vs_compact"]["passed"]
    assert summary["compact_vs_onnx"]["passed"]
    assert set(metadata) == set(delivered(compressed))
    assert summary["accuracy"].keys() >= {"compact", "onnx"}
    again = run("export", compressed, "-o", tmp_path / "m.onnx")
    assert again.exit_code == 2
    assert "the file exists" in again.stderr


def delivered(directory: Path) -> dict[str, str]:
    return {prop.key: prop.value for prop in onnx.load(directory / ONNX).metadata_props}


def test_files_of_two_runs_are_refused(compressed: Path, tmp_path: Path) -> None:
    copy = damaged(compressed, tmp_path)
    proto = onnx.load(copy / ONNX)
    proto.producer_name = "another run"  # the same function, not the same file
    onnx.save(proto, copy / ONNX)
    for code, arguments in ((1, ("verify", copy)), (2, ("export", copy, "-o", tmp_path / "m.onnx"))):
        result = run(*arguments)
        assert result.exit_code == code
        assert "changed since" in result.stderr
    (copy / ONNX).write_bytes((compressed / ONNX).read_bytes()[:1000])
    result = run("verify", copy)
    assert result.exit_code == 2
    assert "cannot load" in result.stderr
    assert not (tmp_path / "m.onnx").exists()


def test_no_room_from_the_start_leaves_nothing(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    result = run("compress", spec, *options(tmp_path / "out", **{"epochs": 0, "start": "fold"}))
    assert result.exit_code == 2
    assert "No space left" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_renamed_is_kept(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody takes the place while the run is delivered: the message names where all of it lies."""
    from pdc_fx import artifacts

    made = artifacts.onnx_accuracy

    def meanwhile(*given: Any) -> Any:
        (tmp_path / "out" / "someone").mkdir(parents=True)
        return made(*given)

    monkeypatch.setattr(artifacts, "onnx_accuracy", meanwhile)
    result = run("compress", spec, *options(tmp_path / "out", epochs=0, start="fold"))
    assert result.exit_code == 2
    assert "rename that" in " ".join(result.stderr.split())
    assert (tmp_path / ".out.partial" / ONNX).exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"flops-reduction": 50}, "write 0.5 for 50%"),
        ({"augment": "imagnet", "epochs": 0}, "no augmentation is called 'imagnet'"),
        ({"output": "there"}, "the output directory exists"),
        ({"output": "file"}, "there is a file of this name"),
    ],
)
def test_what_is_wrong_is_said_before_images_are_decoded(
    changes: dict[str, Any], said: str, spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()
    result = run("compress", spec, *options(tmp_path / "out", **{"data": "folder:nowhere", **changes}))
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())


@pytest.mark.parametrize("name", ["leaves", "Leaving"])
def test_a_model_that_ends_the_program_is_an_error(name: str, folder: Path) -> None:
    result = run("check", f"{folder / 'net.py'}:{name}", "--input", "1x1x8x8")
    assert result.exit_code == 2
    assert "raised SystemExit" in result.stderr


@pytest.mark.parametrize("line", [["check", "--json"], ["inspect", "--json"], ["inspect", "--dot"]])
def test_what_a_model_prints_does_not_go_where_programs_read(line: list[str], folder: Path) -> None:
    result = run(line[0], f"{folder / 'net.py'}:Talking", "--input", "1x1x8x8", *line[1:])
    assert result.exit_code == 0, result.stderr
    assert "here I am" not in result.stdout
    assert "here I am" in result.stderr
    assert result.stdout.startswith("{" if "--json" in line else "digraph")


def test_values_that_are_not_finite_are_refused_before_channels_are_chosen(folder: Path, tmp_path: Path) -> None:
    result = run("compress", f"{folder / 'net.py'}:negative", *options(tmp_path / "out", epochs=0))
    assert result.exit_code == 2
    assert "computes on the calibration images is not finite" in " ".join(result.stderr.split())


def test_an_interrupted_training_is_not_thrown_away_by_a_run_without_epochs(spec: str, tmp_path: Path) -> None:
    partial = tmp_path / ".out.partial"
    (partial / "checkpoint").mkdir(parents=True)
    (partial / CONFIG).write_text("lr: 0.01\n")
    (partial / "checkpoint" / "step-000000003.pt").touch()
    result = run("compress", spec, *options(tmp_path / "out", epochs=0), "--resume")
    assert result.exit_code == 2
    assert "without epochs it would be thrown away" in " ".join(result.stderr.split())
    assert (partial / "checkpoint" / "step-000000003.pt").exists()
    assert (partial / CONFIG).read_text() == "lr: 0.01\n"  # the options that it was begun with


@pytest.mark.parametrize(
    ("command", "said"), [("check", "default: 600"), ("export", "default: 18"), ("bench", "default: 1, 8,")]
)
def test_help_says_defaults(command: str, said: str) -> None:
    assert said in run(command, "--help").stdout


@pytest.mark.parametrize("known", [True, False])
def test_data_that_moved_are_compared_with_what_was_certified(
    known: bool, compressed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = damaged(compressed, tmp_path)
    recipe, certificate = (json.loads((copy / name).read_text()) for name in (RECIPE, CERTIFICATE))
    recipe["data"] = "parquet:somewhere-else"
    if not known:
        recipe["test_labels"] = "others"
    (copy / RECIPE).write_text(json.dumps(recipe))
    certificate["accuracy"]["onnx"] = 0.5
    certificate["files"][RECIPE] = sha256(copy / RECIPE)
    (copy / CERTIFICATE).write_text(json.dumps(certificate))
    result = run("verify", copy, "--data", "digits")
    assert result.exit_code == (1 if known else 0), result.stderr
    said = " ".join(result.stderr.split())
    assert ("the accuracy is not the certified one: onnx" in said) == known
    assert ("accuracies are not compared" in said) != known


def test_files_of_another_model_are_refused(compressed: Path, spec: str, tmp_path: Path) -> None:
    """One ONNX file that computes something else and says of what recipe it is, one that says nothing, and weights."""
    other = tmp_path / "other"
    result = run("compress", spec, *options(other, **{"flops-reduction": 0.3, "epochs": 0, "start": "fold"}))
    assert result.exit_code == 0, result.stderr
    copy = damaged(compressed, tmp_path)
    assert run("export", spec, "-o", tmp_path / "plain.onnx").exit_code == 0
    for foreign in (other / ONNX, tmp_path / "plain.onnx"):
        (copy / ONNX).write_bytes(foreign.read_bytes())
        result = run("verify", copy)
        assert result.exit_code == 2
        assert result.stderr.startswith("error: the ONNX file was not made from this directory's recipe")
    (copy / WEIGHTS).write_bytes((other / WEIGHTS).read_bytes())
    result = run("verify", copy)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert re.search(r"do not fit the recipe: size mismatch for .*, and \d+ more", result.stderr)


def test_what_does_not_agree_is_not_written(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "TOLERANCES", {"float32": 0.0, "float16": 0.0})
    (tmp_path / "m.onnx").write_bytes(b"the file before")
    result = run("export", spec, "-o", tmp_path / "m.onnx", "--overwrite")
    assert result.exit_code == 1
    assert "does not compute" in result.stderr
    assert (tmp_path / "m.onnx").read_bytes() == b"the file before"
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_a_network_that_does_not_verify_is_not_delivered(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "TOLERANCES", {"float32": -1.0})
    result = run("compress", spec, *options(tmp_path / "out", epochs=0, start="fold"))
    assert (result.exit_code, result.stdout) == (1, "")
    assert re.search(r"^error: the verification failed \[Conv node .+\]$", result.stderr, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("model", "chosen", "words"),
    [
        ("net", {"alpha": 0, "features": "auto"}, "maps are not matched: alpha is 0: there is no teacher"),
        (
            "Draws",
            {},
            "all filters are trained, tied, which takes longer than the small network: in training mode the small network is another function",
        ),
    ],
)
def test_what_a_run_did_otherwise_is_said(
    folder: Path, tmp_path: Path, model: str, chosen: dict[str, Any], words: str
) -> None:
    result = run("compress", f"{folder / 'net.py'}:{model}", *options(tmp_path / "out", **chosen))
    assert result.exit_code == 0, result.stderr
    assert [line for line in result.stderr.splitlines() if line.startswith(words)]
    assert (tmp_path / "out" / CERTIFICATE).exists()


def test_what_is_special_about_a_file_is_said(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights beside it, and nodes that half precision would let overflow."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\nclass Net(nn.Conv2d):\n    def forward(self, x):\n"
        "        return super().forward(x * 3e4 + 3e4) / 3e4\n\n"
        "def net():\n    return Net(3, 64, 3)\n\nnet.input_shape = (1, 3, 8, 8)\n"
    )
    monkeypatch.setattr(store, "EXTERNAL_ABOVE", 1000)
    result = run("export", f"{tmp_path / 'net.py'}:net", "-o", tmp_path / "m.onnx", "--fp16")
    assert result.exit_code == 0, result.stderr
    (weights,) = (path for path in tmp_path.iterdir() if path.name not in ("net.py", "m.onnx", "__pycache__"))
    lines = result.stdout.replace("\n", "")
    assert f"weights: {weights}kept in float32, since they may overflow: " in lines
    assert int(re.findall(r"overflow: (\d+) nodes", lines)[0]) > 0


def test_the_older_exporter_is_named(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\n\nclass Net(torch.nn.Conv2d):\n    def forward(self, x):\n"
        "        y = super().forward(x)\n        return torch.cdist(y[:, :, 0], y[:, :, 1])\n\n"
        "def net():\n    return Net(3, 4, 3)\n"
    )
    result = run("export", f"{tmp_path / 'net.py'}:net", "--input", "1x3x8x8", "-o", tmp_path / "m.onnx")
    assert result.exit_code == 0, result.stderr
    assert "note: torch.export does not take the model; the older exporter made the file\n" in result.stderr


def test_inspect_and_check(spec: str) -> None:
    table = run("inspect", spec)
    assert table.exit_code == 0
    assert "32 of 42 channels in 2 groups" in table.stdout
    data = json.loads(run("inspect", spec, "--json").stdout)
    assert [g["channels"] for g in data["groups"]] == [16, 16]
    certificate = json.loads(run("check", spec, "--json").stdout)
    assert set(certificate) >= {
        "model", "passed", "max_abs_error", "max_rel_error", "tolerance", "dtype", "seed", "macs_before", "macs_after", "params_before",
        "params_after", "channels", "mergeable_channels", "groups", "frozen", "unreached", "seconds", "result_type",
    }  # fmt: skip
    assert certificate["seconds"].keys() == {"trace", "analyze", "tie", "rewrite", "compare"}


def test_a_model_of_two_inputs(folder: Path) -> None:
    shapes = ("--input", "1x1x8x8", "--input", "1x2x8x8")
    certificate = json.loads(run("check", f"{folder / 'net.py'}:Pair", *shapes, "--json").stdout)
    assert (certificate["passed"], certificate["mergeable_channels"]) == (True, 8)
    assert certificate["mergeable_macs"] == certificate["macs_before"]
    assert run("inspect", f"{folder / 'net.py'}:Pair", *shapes).exit_code == 0


def test_a_model_that_makes_float32_tensors_is_checked_in_float64(folder: Path) -> None:
    grid = f"{folder / 'net.py'}:OwnGrid"
    found = json.loads(run("check", grid, "--dtype", "auto", "--json", "--input", "1x1x8x8").stdout)
    assert (found["passed"], found["dtype"]) == (True, "float64")


def test_a_model_that_takes_float32_alone_is_checked_in_it(folder: Path) -> None:
    options = (f"{folder / 'net.py'}:Single", "--json", "--input", "1x1x8x8")
    found = json.loads(run("check", *options, "--dtype", "auto").stdout)
    assert (found["passed"], found["dtype"]) == (True, "float32")
    refused = run("check", *options)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "raised AssertionError in its forward pass" in refused.stderr.replace("\n", " ")


def test_a_check_that_fails_says_where(tmp_path: Path) -> None:
    """By a rule of the user's that takes a softmax over the channels for an element-wise function."""
    (tmp_path / "net.py").write_text(WRONG_RULE)
    with registry_restored():
        result = run("check", f"{tmp_path / 'net.py'}:net")
    assert (result.exit_code, result.stderr) == (1, "")
    assert "FAILED, relative error" in result.stdout.replace("\n", " ")
    assert "first difference: output\n" in result.stdout


@pytest.mark.parametrize(
    ("command", "line"), [("check", "not reached: other"), ("inspect", "not reached by the example inputs: other")]
)
def test_a_module_that_did_not_run_is_named(folder: Path, command: str, line: str) -> None:
    result = run(command, f"{folder / 'net.py'}:Auxiliary", "--input", "1x1x8x8")
    assert result.exit_code == 0, result.stderr
    assert line in result.stdout.splitlines()


def test_ctrl_c_is_one_line(folder: Path) -> None:
    result = run("check", f"{folder / 'net.py'}:interrupted")
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "interrupted\n"
    assert result.stderr.count("\n") == 1


def test_a_reader_that_has_gone(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in ``pdc-fx check MODEL --json | head -0``: no message, for nobody reads it, and no verification that failed."""
    reading, writing = os.pipe()
    os.close(reading)
    errors = io.StringIO()
    with io.TextIOWrapper(io.FileIO(writing, "w"), write_through=True) as gone, monkeypatch.context() as patch:  # type: ignore[type-var]
        patch.setattr(sys, "stdout", gone)
        patch.setattr(sys, "stderr", errors)
        patch.setattr(sys, "argv", ["pdc-fx", "check", spec, "--json"])
        with pytest.raises(SystemExit) as ended:
            main()
    assert (ended.value.code, errors.getvalue()) == (128 + 13, "")


def test_streams_that_are_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook, or where a program takes up what is printed."""
    written = io.StringIO()
    monkeypatch.setattr(sys, "stdout", written)
    monkeypatch.setattr(sys, "argv", ["pdc-fx", "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert "Usage: " in written.getvalue()  # what follows says how Python was started


@pytest.fixture
def quick_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small teacher that has learned nothing, and calibration in place of training."""
    teacher = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(2048, 10)).eval()
    monkeypatch.setattr(demo, "EPOCHS", 0)
    monkeypatch.setattr(demo, "train_teacher", lambda data, seed: teacher)


@pytest.mark.usefixtures("quick_demo")
def test_a_demonstration_that_does_not_verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "TOLERANCES", {"float32": -1.0})
    result = run("demo", "-o", tmp_path / "out")
    assert result.exit_code == 1, result.stderr
    assert "compact against ONNX Runtime: FAILED" in result.stdout
    assert "kept in" not in result.stdout
    in_json = run("demo", "--json", "-o", tmp_path / "out")
    assert (in_json.exit_code, json.loads(in_json.stdout)["passed"]) == (1, False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick_demo")
def test_a_demonstration_that_is_not_kept() -> None:
    result = run("demo")
    assert result.exit_code == 0, result.stderr
    assert "kept in" not in result.stdout


@pytest.mark.usefixtures("quick_demo")
def test_the_demonstration_in_json(tmp_path: Path) -> None:
    result = run("demo", "--json", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found.pop("latency")["timings"][0]["batch"] == 1
    assert found == json.loads((tmp_path / "out" / CERTIFICATE).read_text())


def test_a_demonstration_that_is_stopped_promises_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> Any:
        raise Interrupted("stopped", hint="--resume goes on from there", signal=15)

    monkeypatch.setattr(demo, "train_teacher", stopped)
    result = run("demo", "-o", tmp_path / "out")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (143, "error: stopped")
    assert list(tmp_path.iterdir()) == []


def test_a_demonstration_that_breaks_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(data: Any, seed: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "train_teacher", interrupted)
    assert run("demo", "-o", tmp_path / "out").exit_code == 130
    assert list(tmp_path.iterdir()) == []


NET = ["compress", "{f}/net.py:net", "--data", "digits", "--flops-reduction", "0.5", "-o", "{f}/x"]
BAD = [
    (["export", "{f}/net.py:net", "-o", "{f}/n.onnx", "--input-name", "x", "--output-name", "x"], 2, "have one name"),
    (["export", "{f}/net.py:net", "-o", "{f}/n.onnx", "--input-name", "x", "--input-name", "y"], 2, "the model has 1"),
    (["export", "{f}/net.py:net", "-o", "{f}/n.onnx", "--opset", "0"], 2, "out of range"),
    (["export", "{f}/net.py:net", "-o", "{f}", "--overwrite"], 2, "this is a directory"),
    (["export", "{f}/net.py:net", "-o", "{f}/n.onnx", "--model", "x.py:y"], 2, "is for an output directory"),
    (["export", "{f}/net.py:Pair", "-o", "{f}/n.onnx", "--input", "1x1x8x8"], 2, "does not run"),
    (["export", "{f}", "-o", "{f}/n.onnx", "--input", "1x1x8x8"], 2, "is for a MODEL"),
    (["verify", "{f}", "--data", "digits", "--no-data"], 2, "contradict each other"),
    (["check", "{f}/gone.py:net"], 2, "no such file"),
    (["check", "{f}/net.py:missing"], 2, "missing"),
    (["check", "{f}/net.py:broken"], 2, "no such luck"),
    (["check", "{f}/net.py:not_a_module"], 2, "instead of a torch.nn.Module"),
    (["check", "{f}/net.py:alone"], 2, "--input"),
    (["check", "{f}/net.py:alone", "--input", "1x1x8x8"], 3, "no two channels"),
    (["check", "{f}/net.py:net", "--input", "1x3x8x8"], 2, "in its forward pass"),
    (["check", "{f}/net.py:net", "--input", "1,1,8,8"], 2, "no input shape"),
    (["check", "{f}/net.py:net", "--weights", "{f}/gone.safetensors"], 2, "gone.safetensors"),
    (["check", "torchvision:resnet19"], 2, "resnet18"),
    (["compress", "{f}/net.py:net", "--data", "digitz", "--flops-reduction", "0.5", "-o", "{f}/x"], 2, "digits"),
    (["compress", "{f}/net.py:net", "--data", "digits", "-o", "{f}/x"], 2, "say how much"),
    ([*NET, "--input", "1x8x8"], 2, "training needs a model of images [input (1, 8, 8)]"),
    ([*NET, "--input", "1x1x8x8", "--input", "1x1x8x8"], 2, "for models of one tensor only; pass --input once"),
    ([*NET, "--input", "1x1x16x16"], 2, "the images are 1x8x8, the model's input is 1x16x16 [digits]; pass --input"),
    (["compress", "{f}/net.py:Pair", *NET[2:]], 2, "does not take this input: Pair.forward() missing 1 required"),
    (
        [
            "compress",
            "{f}/net.py:net",
            "--data",
            "digits",
            "--flops-reduction",
            "0.9",
            "--round-to",
            "8",
            "-o",
            "{f}/x",
        ],
        2,
        "largest possible",
    ),
    (
        ["compress", "{f}/net.py:net", "--data", "digits", "--flops-reduction", "1.5", "-o", "{f}/x"],
        2,
        "between 0 and 1",
    ),
    (
        [
            "compress",
            "{f}/net.py:net",
            "--data",
            "digits",
            "--flops-reduction",
            "0.5",
            "--num-classes",
            "7",
            "-o",
            "{f}/x",
        ],
        2,
        "--num-classes 10",
    ),
    (
        ["compress", "{f}/net.py:net", "--data", "digits", "--flops-reduction", "0.5", "-o", "/proc/x/y"],
        2,
        "cannot be written",
    ),
    (["compress", "{f}/net.py:net", "--data", "digits", "--flops-reduction", "0.5", "-o", "{f}/out"], 2, "exists"),
    (
        ["compress", "{f}/net.py:net", "--data", "parquet:{f}/none", "--flops-reduction", "0.5", "-o", "{f}/x"],
        2,
        "{f}/none",
    ),
    (
        ["compress", "{f}/net.py:net", "--data", "digits", "--flops-reduction", "0.5", "--lr", "-1", "-o", "{f}/x"],
        2,
        "lr must be positive",
    ),
    (
        ["compress", "{f}/net.py:net", "--data", "digits", "--flops-reduction", "0.5", "-o", "{f}/net.py/x"],
        2,
        "{f}/net.py",
    ),
    (["verify", "{f}/nowhere"], 2, "no such directory"),
    (["bench", "{f}/nowhere"], 2, "give the one that 'compress' wrote"),
    (["verify", "{f}/net.py"], 2, "a file, not a directory"),
    (["verify", "{f}"], 2, "no output directory"),
    (["export", "{f}/net.py:net", "-o", "{f}/no/such/place.onnx"], 2, "{f}/no/such"),
    (["export", "{f}/net.py:net", "-o", "{f}/y.onnx", "--opset", "3"], 2, "opset"),
]


@pytest.mark.parametrize(
    ("arguments", "code", "words"), BAD, ids=lambda v: " ".join(v) if isinstance(v, list) else None
)
def test_bad_input_is_one_message(arguments: list[str], code: int, words: str, folder: Path, compressed: Path) -> None:
    before = sorted(folder.rglob("*"))
    result = run(*(a.format(f=folder) for a in arguments))
    assert result.exit_code == code, result.stderr
    assert result.stdout == ""
    message = result.stderr.replace("\n", "")
    assert words.format(f=folder) in message
    assert "Traceback" not in message
    assert message.startswith("error: ")
    assert [p for p in sorted(folder.rglob("*")) if "__pycache__" not in p.parts] == [
        p for p in before if "__pycache__" not in p.parts
    ]


def test_a_configuration_file_gives_options(spec: str, folder: Path, compressed: Path) -> None:
    """What a run was started with is left as a file that starts it again; the command line counts more."""
    effective = yaml.safe_load((compressed / CONFIG).read_text())
    assert {name: effective[name] for name in ("model", "data", "epochs", "batch_size", "mode")} == {
        "model": spec, "data": "digits", "epochs": 1, "batch_size": 64, "mode": "hard",
    }  # fmt: skip
    again = folder / "again"
    result = run("compress", "--config", compressed / CONFIG, "-o", again)
    assert result.exit_code == 0, result.stderr
    assert (again / CONFIG).read_text() == (compressed / CONFIG).read_text()
    other = folder / "other"
    assert run("compress", "--config", compressed / CONFIG, "-o", other, "--lr", 0.01).exit_code == 0
    assert yaml.safe_load((other / CONFIG).read_text()) == {**effective, "lr": 0.01}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epoch: 3", "there is no option 'epoch'; did you mean 'epochs'?"),
        ("batch-sizes: 3", "did you mean 'batch_size'?"),
        ("epochs: many", "Invalid value for '--epochs'"),
        ("opt: lamb", "'lamb' is not one of 'auto', 'muon', 'sgd', 'adamw'"),
        ("- 3", "must hold one option a line"),
        ("epochs: [", "cannot be read"),
        ("freeze: nowhere", "'nowhere'"),  # one name does for a list of one
    ],
)
def test_configurations_that_are_refused(spec: str, folder: Path, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    arguments = [spec, "--data", "digits", "--flops-reduction", "0.5", "-o", tmp_path / "out"]
    result = run("compress", *arguments, "--config", tmp_path / "run.yaml")
    assert result.exit_code == 2
    message = re.sub(r"[\s│]+", " ", result.stderr)
    assert words in message, message
    assert not (tmp_path / "out").exists()


def test_help_names_every_command() -> None:
    text = run("--help").stdout
    assert all(name in text for name in ("demo", "inspect", "check", "compress", "export", "verify", "bench"))
    assert all(
        run(name, "--help").exit_code == 0
        for name in ("demo", "inspect", "check", "compress", "export", "verify", "bench")
    )


def test_a_teacher_sees_images_normalised_as_its_weights_say(spec: str, folder: Path, tmp_path: Path) -> None:
    images = open_data("digits")
    (mean,), (std,) = images.mean, images.std
    model = build_model(spec).model
    save_file(model.state_dict(), folder / "own.safetensors")
    for name, metadata in (("same", None), ("shifted", {"normalisation": f"mean {mean / 2} std {std / 2}"})):
        save_file(model.state_dict(), folder / f"{name}.safetensors", metadata)
        out = tmp_path / name
        result = run(
            *("compress", spec, *options(out, epochs=0, start="fold"), "--weights", folder / "own.safetensors"),
            *("--teacher-model", spec, "--teacher-weights", folder / f"{name}.safetensors"),
        )
        assert result.exit_code == 0, result.stderr
    same, shifted = (json.loads((tmp_path / n / CERTIFICATE).read_text())["accuracy"] for n in ("same", "shifted"))
    assert same["teacher"] == same["original"]
    assert shifted["original"] == same["original"]
    model.register_forward_pre_hook(lambda _, args: ((args[0] * std + mean / 2) / (std / 2),))
    assert shifted["teacher"] == pytest.approx(accuracy(model, images.test, images))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--start", "fold", "--epochs", "0", "--calibration-images", "7"], "for start 'calibrate'"),
        (["--epochs", "0", "--latency-table", "none.json"], "for a budget of latency"),
        (["--warmup-epochs", "inf"], "warmup_epochs must be a finite number"),
        (["--temperature", "inf"], "temperature must be a finite number"),
    ],
)
def test_options_that_mean_nothing_are_refused(spec: str, tmp_path: Path, arguments: list[str], words: str) -> None:
    result = run("compress", spec, *options(tmp_path / "out"), *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in " ".join(result.stderr.split())
    assert list(tmp_path.iterdir()) == []


def test_a_budget_on_the_command_line_takes_the_place_of_that_in_the_file(spec: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("flops-reduction: 0.5\namp: no\nepochs: 0\n")  # YAML takes this no for false
    out = tmp_path / "out"
    given = ["--config", tmp_path / "run.yaml", "--params-reduction", 0.3, "--start", "fold"]
    result = run("compress", spec, "--data", "digits", "-o", out, *given)
    assert result.exit_code == 0, result.stderr
    kept = yaml.safe_load((out / CONFIG).read_text())
    assert kept["params_reduction"] == 0.3
    assert "flops_reduction" not in kept
    assert kept["amp"] == "no"
    result = run("compress", spec, "--data", "digits", "-o", out, *given, "--flops-reduction", 0.3)
    assert "several budgets are given" in result.stderr


def test_verify_says_that_images_do_not_fit(compressed: Path, tmp_path: Path) -> None:
    from PIL import Image

    for part in ("train", "val"):
        for name in "abc":
            (tmp_path / "images" / part / name).mkdir(parents=True)
            Image.new("L", (8, 8), 99).save(tmp_path / "images" / part / name / "1.png")
    result = run("verify", compressed, "--data", f"folder:{tmp_path / 'images'}")
    assert result.exit_code == 2
    assert "scores per image, the data has 3 classes" in " ".join(result.stderr.split())


def test_json_tells_of_what_failed(
    spec: str, compressed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(verification.TOLERANCES, "float32", 0.0)
    result = run("compress", spec, *options(tmp_path / "out", epochs=0), "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["directory"] is None
    assert not json.loads(result.stdout)["compact_vs_onnx"]["passed"]
    result = run("export", compressed, "-o", tmp_path / "m.onnx", "--json")
    told = json.loads(result.stdout)
    assert result.exit_code == 1
    assert (told["path"], told["sha256"], told["verification"]["passed"]) == (None, None, False)
    assert list(tmp_path.iterdir()) == []


def test_macs_are_those_of_one_image(spec: str, tmp_path: Path) -> None:
    found = []
    for batch in (1, 4):
        out = tmp_path / str(batch)
        result = run("compress", spec, *options(out, epochs=0, input=f"{batch}x1x8x8"))
        assert result.exit_code == 0, result.stderr
        bench = run("bench", out, "--json", "--runs", 2, "--warmup", 1, "-o", tmp_path / "b.json", "--overwrite")
        certificate = json.loads((out / CERTIFICATE).read_text())
        told = json.loads(bench.stdout)
        found.append((certificate["macs_before"], certificate["macs_after"], told["dense_macs"], told["compact_macs"]))
        assert "count differently" not in (out / REPORT).read_text()
    assert found[0] == found[1]


ENDED = """
import os, signal
from torch import nn

class Net(nn.Conv2d):
    def forward(self, x):
        if os.path.isdir(FOLDER) and len(os.listdir(FOLDER)) > 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().forward(x)

def build():
    return Net(3, 4, 1)
"""


def test_a_signal_to_end_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "net.py").write_text(f"FOLDER = {str(tmp_path / 'out')!r}\n{ENDED}")
    command = [sys.executable, "-m", "pdc_fx", "export", f"{tmp_path / 'net.py'}:build", "--input", "1x3x8x8"]
    done = subprocess.run([*command, "-o", tmp_path / "out" / "net.onnx"], capture_output=True, check=False)
    assert done.returncode == 128 + signal.SIGTERM
    assert not list((tmp_path / "out").iterdir())
