"""The examples run as they stand, say what they did, and fail where they should.

Each runs in a process of its own, as a user runs it; a line of Python before it breaks or counts something.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import pdc_fx

ROOT = Path(__file__).resolve().parent.parent
NEEDS = {"plain_loop": "torch", "lightning_callback": "lightning", "timm_model": "timm"}

COUNTING = """
import pdc_fx
step, calls = pdc_fx.Tying.step, []
pdc_fx.Tying.step = lambda self: (calls.append(1), step(self))[1]
import atexit
atexit.register(lambda: print(len(calls), "tying steps"))
"""
SPOILED = """
import pdc_fx, torch
rewrite = pdc_fx.rewrite
def spoiled(*args, **options):
    compact = rewrite(*args, **options)
    with torch.no_grad():
        next(compact.parameters())[0] *= 1.1
    return compact
pdc_fx.rewrite = spoiled
"""


def python(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, with this repository's packages; an example may take a minute on two free cores."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def run(name: str, folder: Path, *arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """``python examples/NAME.py ARGUMENTS`` in ``folder``, after the lines ``before``."""
    file = str(ROOT / "examples" / f"{name}.py")
    then = f"import runpy, sys\nsys.argv = {[file, *arguments]}\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    return python(*(["-c", f"{before}\n{then}"] if before else [file, *arguments]), folder=folder)


def needs(name: str) -> None:
    if importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"examples/{name}.py is NOT TESTED: {NEEDS[name]} is not installed; pip install {NEEDS[name]}")


def figures(output: str) -> dict[str, float]:
    """The numbers in what an example prints."""
    patterns = {
        "steps": r"^(\d+) optimizer steps",
        "teacher": r"teacher ([\d.]+)%, tied",
        "tied": r"tied ([\d.]+)%, compact",
        "compact": r"compact ([\d.]+)%$",
        "before": r"^MACs: ([\d,]+) before",
        "after": r"before, ([\d,]+) after$",
        "error": r"^relative error: tied to compact ([\d.e+-]+)",
    }
    found = {name: re.search(pattern, output, flags=re.MULTILINE) for name, pattern in patterns.items()}
    assert all(found.values()), output
    return {name: float(match[1].replace(",", "").rstrip(".")) for name, match in found.items() if match}


@pytest.mark.slow
@pytest.mark.parametrize("name", NEEDS)
def test_example(name: str, tmp_path: Path) -> None:
    """In a minute: half of the MACs, hardly any accuracy, no difference between tied and compact."""
    needs(name)
    done = run(name, tmp_path, before=COUNTING)
    assert done.returncode == 0, done.stderr
    found = figures(done.stdout)
    assert found["teacher"] > 90
    assert found["tied"] > found["teacher"] - 5
    assert found["compact"] == pytest.approx(
        found["tied"], abs=0.3
    )  # an image of 360, whose two best scores are as good as equal
    assert 0.45 < found["after"] / found["before"] < 0.5
    assert 0 < found["error"] < 1e-6
    assert f"{found['steps']:.0f} tying steps" in done.stdout.splitlines()
    assert (tmp_path / "compact.onnx").is_file() == (name == "plain_loop")


@pytest.mark.slow
def test_compress_in_one_call(tmp_path: Path) -> None:
    done = run("compress_call", tmp_path, "--epochs", "5", "-o", "kept")
    assert done.returncode == 0, done.stderr
    scores = {name: float(value) for name, value in re.findall(r"^(\w+) +([\d.]+)%$", done.stdout, flags=re.MULTILINE)}
    assert scores.keys() == {"teacher", "tied", "compact", "loaded"}
    assert scores["compact"] == scores["loaded"] > 80
    assert (tmp_path / "kept" / "certificate.json").is_file()


@pytest.mark.parametrize(("name", "options"), [("plain_loop", ["--amp"]), ("timm_model", ["-b", "128"])])
def test_options(name: str, options: list[str], tmp_path: Path) -> None:
    needs(name)
    done = run(name, tmp_path, "--epochs", "1", "--opt", "adamw", "--lr", "0.002", *options)
    assert done.returncode == 0, done.stderr
    assert figures(done.stdout)["error"] < 1e-6


@pytest.mark.parametrize("name", NEEDS)
def test_another_network_than_the_tied_one_is_a_failure(name: str, tmp_path: Path) -> None:
    needs(name)
    done = run(name, tmp_path, "--epochs", "1", before=SPOILED)
    assert done.returncode == 1, done.stderr
    assert figures(done.stdout)["error"] > 1e-4


@pytest.mark.parametrize("name", ["lightning_callback", "timm_model"])
def test_what_is_missing_is_said_in_one_line(name: str, tmp_path: Path) -> None:
    done = run(name, tmp_path, before=f"import sys\nsys.modules[{NEEDS[name]!r}] = None")
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(rf"this example needs \w+: pip install {NEEDS[name]}\n", done.stderr)


def after_training(*, snap: bool) -> nn.Module:
    """The rewrite after one step of a loop that ties in mode ``pdc``, with and without ``snap``."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    example = torch.randn(4, 1, 8, 8)
    plan = pdc_fx.plan(model, pdc_fx.analyze(model, example), flops_reduction=0.5)
    tying = pdc_fx.tie(model, plan, mode="pdc", total_steps=100)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(example).square().mean().backward()
    optimizer.step()
    tying.step()
    return pdc_fx.rewrite(model, tying.snap() if snap else tying.plan, example)


def test_rewrite_refuses_what_was_not_snapped() -> None:
    with pytest.raises(pdc_fx.PdcError, match=r"not tied.*call tying\.snap\(\) before the rewrite") as caught:
        after_training(snap=False)
    assert type(caught.value).__name__ == "ExactnessError"
    assert sum(p.numel() for p in after_training(snap=True).parameters()) < 9 * 8 + 3 * 8 + 8 * 36 * 10 + 10


RESUME = """
import sys
import lightning.pytorch as L, torch
sys.path.insert(0, EXAMPLES)
from lightning_callback import Distil, Shrink, collate, make_model, open_data
data = open_data("digits")
def fit(epochs, checkpoint=None):
    L.seed_everything(0, verbose=False)
    student = make_model(1, 10)
    shrink = Shrink(student, torch.zeros(1, 1, 8, 8), flops_reduction=0.5)
    images = torch.utils.data.DataLoader(data.train, 64, drop_last=True, collate_fn=collate)
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = L.Trainer(max_epochs=2, limit_train_batches=9, accumulate_grad_batches=2, **quiet)
    trainer.callbacks.append(shrink)
    if epochs == 1:
        trainer.callbacks.append(Stop())
    trainer.fit(Distil(student, data), images, ckpt_path=checkpoint)
    return trainer, shrink
class Stop(L.Callback):
    def on_train_epoch_end(self, trainer, module):
        trainer.save_checkpoint("half.ckpt")
        trainer.should_stop = True
_, whole = fit(2)
fit(1)
trainer, resumed = fit(2, "half.ckpt")
assert trainer.global_step == 10, trainer.global_step
assert resumed.plan.to_json() == whole.plan.to_json()
pairs = zip(whole.student.state_dict().values(), resumed.student.state_dict().values(), strict=True)
print("resumed equals whole:", all(torch.equal(a, b) for a, b in pairs))
"""


def test_lightning_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    """Nine batches an epoch, two a step: five steps, the last on one batch alone. Stopped after one epoch and resumed."""
    needs("lightning_callback")
    code = f"EXAMPLES = {str(ROOT / 'examples')!r}\n{RESUME}"
    done = python("-c", code, folder=tmp_path)
    assert "resumed equals whole: True" in done.stdout, done.stdout + done.stderr


def classifier(path: Path, metadata: dict[str, str], *, batch: int | None = None) -> torch.nn.Module:
    """The mean of each of three channels as the score of a class, as an ONNX file."""
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    pdc_fx.export_onnx(model, torch.zeros(batch or 1, 3, 4, 5), path, metadata=metadata, dynamic_batch=batch is None)
    return model


SERVED = {
    "known": (
        {"pdc_fx.mean": "[0.5, 0, 0]", "pdc_fx.std": "[0.25, 1, 1]", "pdc_fx.classes": '["red", "green", "blue"]'},
        None,
    ),
    "unknown": ({}, None),
    "one at a time": ({"pdc_fx.classes": '["red", "green", "blue"]'}, 1),
}


@pytest.mark.parametrize("name", SERVED)
def test_serving_needs_neither_pytorch_nor_this_package(name: str, tmp_path: Path) -> None:
    """Forty images: two whole batches, one of them smaller; the answers are those of the model."""
    metadata, batch = SERVED[name]
    model = classifier(tmp_path / "model.onnx", metadata, batch=batch)
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 5, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    hidden = "import sys\nsys.modules.update(dict.fromkeys(['torch', 'onnx', 'pdc_fx', 'PIL']))"
    done = run("serve_onnx", tmp_path, "model.onnx", "images.npy", before=hidden)
    assert done.returncode == 0, done.stderr
    mean, std, classes = (json.loads(metadata.get(f"pdc_fx.{key}", "null")) for key in ("mean", "std", "classes"))
    values = (torch.from_numpy(images) / 255 - torch.tensor(mean or 0.0)) / torch.tensor(std or 1.0)
    shares = model(values.permute(0, 3, 1, 2)).softmax(1).tolist()
    expected = [(row.index(max(row)), max(row)) for row in shares]
    found = re.findall(r"^image (\d+): (\w+) ([\d.]+)%$", done.stdout, flags=re.MULTILINE)
    assert [int(number) for number, _, _ in found] == list(range(40))
    assert [answer for _, answer, _ in found] == [classes[best] if classes else str(best) for best, _ in expected]
    assert [float(share) for _, _, share in found] == pytest.approx([100 * most for _, most in expected], abs=0.06)


def test_serving_says_what_does_not_fit(tmp_path: Path) -> None:
    classifier(tmp_path / "model.onnx", {})
    np.save(tmp_path / "images.npy", np.zeros((1, 8, 8, 3), np.uint8))
    done = run("serve_onnx", tmp_path, "model.onnx", "images.npy")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: the model takes images of N x 4 x 5 x 3, not (1, 8, 8, 3)\n"
