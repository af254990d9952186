"""Training runs as clusters treat them: killed, stopped, out of space, on several processes; nothing is lost."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_files import different_sizes
from safetensors.torch import load_file
from torch import Tensor, nn

from pdc_fx.data import ImageData, open_data, training_batches
from pdc_fx.data.mixing import Mixed
from pdc_fx.directory import WEIGHTS
from pdc_fx.distill import Checkpoints, CheckpointWarning, Processes, TiedTraining, TrainOptions
from pdc_fx.distill.evaluation import accuracy, reestimate_batch_norm
from pdc_fx.errors import ArtifactError, InputError, Interrupted, PdcError
from pdc_fx.export.pages.charts import epochs_of
from pdc_fx.ir import ClusterPlan, first_appearance
from pdc_fx.options import Mode, Start
from pdc_fx.pipeline import analyze, compress, plan, tie

FACTORY = """
from torch import nn

def net(num_classes=10):
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, num_classes),
    )

net.input_shape = (1, 1, 8, 8)
"""


@pytest.fixture
def spec(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text("import torch\ntorch.manual_seed(0)\n" + FACTORY)
    return f"{tmp_path / 'net.py'}:net"


def command(spec: str, out: Path, mode: str = "pdc", *more: str) -> list[str]:
    fixed = "--data digits --flops-reduction 0.375 --epochs 30 -b 64 --amp no --checkpoint-every 5 --model-ema"
    return [sys.executable, "-m", "pdc_fx", "compress", spec, *fixed.split(), "--mode", mode, "-o", str(out), *more]


def stopped(arguments: list[str], out: Path, after: int, number: signal.Signals) -> subprocess.CompletedProcess[str]:
    """Send a signal once the checkpoint of step ``after``, or a later one, is there."""
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    folder = out.with_name(f".{out.name}.partial") / "checkpoint"
    until = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < until:
        if any(int(p.stem.removeprefix("step-")) >= after for p in folder.glob("step-*.pt")):
            process.send_signal(number)
            break
        time.sleep(0.002)
    output, errors = process.communicate(timeout=120)
    return subprocess.CompletedProcess(arguments, process.returncode, output, errors)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["pdc", "hard"])
def test_a_killed_run_goes_on_bit_for_bit(spec: str, tmp_path: Path, mode: str) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert subprocess.run(command(spec, whole, mode), capture_output=True).returncode == 0
    step = random.SystemRandom().randrange(5, 550)
    killed = stopped(command(spec, parts, mode), parts, step, signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL, (step, killed.stderr)
    resumed = subprocess.run(command(spec, parts, mode, "--resume"), capture_output=True, text=True)
    assert resumed.returncode == 0, (step, resumed.stderr)
    assert "no checkpoint" not in resumed.stderr, step
    one, two = load_file(whole / WEIGHTS), load_file(parts / WEIGHTS)
    assert all(torch.equal(one[name], two[name]) for name in one), step
    lines = [[json.loads(line) for line in (d / "metrics.jsonl").read_text().splitlines()] for d in (whole, parts)]
    assert [{**r, "seconds": 0} for r in lines[0]] == [{**r, "seconds": 0} for r in lines[1]], step


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_writes_a_last_checkpoint(spec: str, tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "out"
    found = stopped(command(spec, out), out, 20, number)
    assert found.returncode == 128 + number, found.stderr
    assert "Traceback" not in found.stderr
    message = " ".join(found.stderr.split())
    # the signal may come between two epochs
    place = re.search(r"stopped (?:in epoch \d+, step (\d+) of|after epoch \d+)", message)
    assert place is not None, message
    assert "--resume goes on from there" in message
    assert not out.exists()
    state = Checkpoints(tmp_path / ".out.partial" / "checkpoint").load()
    assert state is not None
    assert int(place[1] or 0) == state["position"]["step"]


def training(directory: Path | None, model: nn.Module | None = None, **options: Any) -> TiedTraining:
    torch.manual_seed(0)
    net = model or nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10)
    )
    data, _ = open_data("digits").hold_out(1000)
    clusters = plan(net, analyze(net, torch.zeros(1, 1, 8, 8)), flops_reduction=0.375)
    chosen = TrainOptions(**{"epochs": 2, "batch_size": 32, "amp": "no", "checkpoint_every": 3, **options})
    return TiedTraining(net, copy.deepcopy(net), clusters, data, None, chosen, "hard", directory, processes=Processes())


class Steady(nn.Sequential):
    """Keeps its batch norm in eval mode, as fine-tuned backbones do, with statistics that are not those of the images."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10)
        )

    def train(self, mode: bool = True) -> Steady:
        super().train(mode)
        self[1].eval()
        return self


@pytest.mark.parametrize(
    ("start", "mode"), [("model", "hard"), ("model", "pdc"), ("calibrate", "hard"), ("fold", "hard")]
)
def test_statistics_that_do_not_move_in_training_stay(start: Start, mode: Mode) -> None:
    torch.manual_seed(0)
    net = Steady()
    found = compress(
        net,
        torch.zeros(1, 1, 8, 8),
        open_data("digits"),
        flops_reduction=0.375,
        mode=mode,
        start=start,
        options=TrainOptions(epochs=1, batch_size=64, amp="no", opt="muon"),
    )
    norm = found.tied[1]  # type: ignore[index]
    assert (norm.running_mean.unique().tolist(), norm.running_var.unique().tolist()) == ([0.0], [1.0])
    assert all(module.training for module in net)


class Deep(nn.Module):
    """Leaves a block out by chance, of NumPy's or Python's numbers, or torch's."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1)
        self.head, self.draw = nn.Linear(8, 10), draw

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = x if self.training and self.draw() < 0.5 else x + self.b(self.a(x).relu())
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("draw", [lambda: np.random.rand(), lambda: random.random(), lambda: float(torch.rand(()))])
def test_a_seed_holds_for_all_that_draws(draw: Callable[[], float]) -> None:
    found = []
    for before in (1, 2):  # what was drawn earlier changes nothing
        random.seed(before)
        np.random.seed(before)
        torch.manual_seed(0)
        run = training(None, Deep(draw), epochs=1)
        _, metrics = run.run()
        found.append((metrics[0], epochs_of(metrics)[-1]["loss"]))
    assert found[0] == found[1]


def test_the_last_record_is_of_what_is_delivered() -> None:
    run = training(None)
    run.held_out = run.data.test
    _, metrics = run.run()
    assert metrics[-1] == {"kind": "final", "accuracy": accuracy(run.model, run.data.test, run.data)}


class Later:
    """Calls a function after so many steps."""

    def __init__(self, steps: int, function: Callable[[], None]) -> None:
        self.left, self.function = steps, function

    def on_start(self, _: Any) -> None:
        return None

    def on_step(self, _: Any) -> None:
        self.left -= 1
        if self.left == 0:
            self.function()

    def on_epoch(self, _: Any) -> None:
        return None


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """As the killed ones above, in one process and so in a second: momentum, learning rate, order of images."""
    options = {"print_freq": 1, "momentum": 0.9, "sched": "cosine", "epochs": 3}
    whole, stopped_run, resumed = (training(tmp_path / name, **options) for name in ("whole", "parts", "parts"))
    whole.run()
    stopped_run.observer = Later(17, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted, match="stopped in epoch 2"):
        stopped_run.run()
    resumed.run(resume=True)
    one, two = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    run = training(tmp_path, print_freq=1)
    run.observer = Later(8, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted, match=r"stopped in epoch 1, step \d+ of 13"):
        run.run()
    newest, before = Checkpoints(tmp_path / "checkpoint").files()
    whole = newest.read_bytes()
    for damage in (whole[: len(whole) // 2], whole[:-1] + b"x", b""):
        newest.write_bytes(damage)
        with pytest.warns(CheckpointWarning, match=f"{newest.name}.*going on from '{before.name}'"):
            state = Checkpoints(tmp_path / "checkpoint").load()
        assert state is not None
        assert state["position"]["step"] == int(before.stem.removeprefix("step-"))
    before.write_bytes(b"x" * 100)
    with pytest.raises(ArtifactError, match="the checkpoint is damaged"):
        training(tmp_path).run(resume=True)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    training(tmp_path).run()
    with pytest.raises(ArtifactError, match=r"belongs to a run with other options: lr, temperature \["):
        training(tmp_path, lr=0.01, temperature=3.0).run(resume=True)
    training(tmp_path, print_freq=1, workers=1).run(resume=True)  # these decide nothing


def test_a_run_is_not_continued_under_another_teacher(tmp_path: Path) -> None:
    training(tmp_path).run()
    run = training(tmp_path)
    nn.init.zeros_(run.teacher[0].weight)  # type: ignore[index, arg-type]
    with pytest.raises(ArtifactError, match=r"belongs to a run with other options: teacher \["):
        run.run(resume=True)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda run: setattr(run, "origin", {"start": "fold"}), "start"),
        (lambda run: setattr(run, "plan", reordered(run.plan)), "clusters"),
        (lambda run: setattr(run, "data", open_data("digits").hold_out(1000, seed=1)[0]), "labels"),
    ],
    ids=["start", "clusters", "labels"],
)
def test_a_run_is_not_continued_from_elsewhere(
    tmp_path: Path, change: Callable[[TiedTraining], Any], named: str
) -> None:
    training(tmp_path).run()
    run = training(tmp_path)
    change(run)
    with pytest.raises(ArtifactError, match=rf"belongs to a run with other options: {named} \["):
        run.run(resume=True)


def reordered(plan: ClusterPlan) -> ClusterPlan:
    """Of the same widths, other channels together."""
    return plan.with_clusters(first_appearance(labels[::-1]) for labels in plan.clusters)


def test_a_signal_while_the_accuracy_is_measured_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = training(tmp_path)
    monkeypatch.setattr(run, "observer", At(2, lambda: signal.raise_signal(signal.SIGTERM)))
    with pytest.raises(Interrupted, match="stopped after epoch 2; a checkpoint was written"):
        run.run()
    whole, resumed = training(None), training(tmp_path)
    whole.run()
    resumed.run(resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))


class At(Later):
    """Calls a function at the end of an epoch."""

    def on_step(self, _: Any) -> None:
        return None

    def on_epoch(self, _: Any) -> None:
        super().on_step(None)


def test_the_rate_that_is_recorded_is_that_of_the_epoch() -> None:
    _, metrics = training(None, sched="step", lr=0.1, lr_step_size=1, warmup_epochs=0.0).run()
    assert [record["lr"] for record in metrics if record["kind"] == "epoch"] == pytest.approx([0.1, 0.01])


@pytest.mark.parametrize(
    ("message", "hint"),
    [
        ("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory", "smaller --batch-size"),
        ("Expected more than 1 value per channel when training", "--batch-size of 2 or more"),
        ("something else", ""),
    ],
)
def test_a_step_that_fails_is_told(monkeypatch: pytest.MonkeyPatch, message: str, hint: str) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError(f"{message}\nand much more")

    run = training(None)
    monkeypatch.setattr("pdc_fx.distill.training.distillation_loss", fails)
    with pytest.raises(PdcError, match=r"training failed in epoch 1, step 1") as caught:
        run.run()
    assert caught.value.what.endswith(message)
    assert hint in caught.value.hint


def test_a_new_run_leaves_no_checkpoint_of_another_one(tmp_path: Path) -> None:
    training(tmp_path).run()
    run = training(tmp_path, print_freq=1)
    run.observer = Later(4, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted):
        run.run()
    steps = [int(path.stem.removeprefix("step-")) for path in Checkpoints(tmp_path / "checkpoint").files()]
    assert max(steps) < 13, "those of the first run reach 26"


def test_a_damaged_checkpoint_makes_room_for_the_next(tmp_path: Path) -> None:
    found = Checkpoints(tmp_path)
    for step in (10, 20):
        found.save({"step": step}, step)
    found.files()[0].write_bytes(b"damaged")
    found.save({"step": 15}, 15)
    assert [path.name for path in found.files()] == ["step-000000015.pt", "step-000000010.pt"]


def test_a_checkpoint_of_a_gpu_is_read_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda _: "cuda:0")
        Checkpoints(tmp_path).save({"weight": torch.ones(2)}, 1)
    state = Checkpoints(tmp_path).load()
    assert state is not None
    assert torch.equal(state["weight"], torch.ones(2))


def test_what_is_recorded_is_the_network_that_is_handed_on() -> None:
    """With averaged weights: those, and not the ones that jump about at a high rate."""
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10))
    run = training(None, net, model_ema=True, model_ema_decay=0.9, lr=0.3, epochs=3)
    run.held_out = run.data.test
    _, metrics = run.run()
    assert epochs_of(metrics)[-1]["accuracy"] == accuracy(run.model, run.data.test, run.data)


def test_an_average_leaves_tables_of_positions_alone() -> None:
    """torch would average them as numbers, and cut off what comes out below."""
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10))
    net.register_buffer("index", torch.arange(500))
    run = training(None, net, model_ema=True, model_ema_decay=0.9999, epochs=1)
    run.run()
    assert torch.equal(run.model.get_buffer("index"), torch.arange(500))


class Volume(nn.Module):
    """Has weights of five axes, which have no channels last of four."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
        self.deep, self.head = nn.Conv3d(1, 1, 1), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.deep(self.flat(x)[:, None])
        return self.head(x.squeeze(1).relu().mean((2, 3)))


def test_weights_of_five_axes_train() -> None:
    _, metrics = training(None, Volume(), epochs=1).run()
    assert [(r["kind"], r.get("channels_last")) for r in metrics if r["kind"] == "layout"] == [("layout", False)]


@pytest.mark.parametrize(("options", "resume"), [({"tensorboard": True}, False), ({}, True)])
def test_what_needs_a_directory_says_so(options: dict[str, Any], resume: bool) -> None:
    with pytest.raises(InputError, match="in a directory, and none is given"):
        training(None, epochs=1, **options).run(resume=resume)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_that_images_do_not_fit_are_refused_before_anything_runs(dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)).to(dtype)
    with pytest.raises(InputError, match=r"images come in float32, .*give model.float\(\)"):
        compress(net, torch.zeros(1, 1, 8, 8, dtype=dtype), open_data("digits"), flops_reduction=0.5)


def test_the_accuracy_on_mixed_images_is_that_of_their_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here all of each image is of class 0, whatever its label was."""
    monkeypatch.setattr(
        "pdc_fx.distill.training.mixed",
        lambda images, labels, *_: Mixed(images, labels, torch.zeros_like(labels), 0.0),
    )
    _, metrics = training(None, alpha=0.0, epochs=2).run()
    assert epochs_of(metrics)[-1]["train_accuracy"] > 0.9


def test_measuring_leaves_every_module_in_its_mode() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10)
    )
    net[1].eval()  # as one freezes a norm
    modes = [module.training for module in net.modules()]
    data = open_data("digits")
    accuracy(net, data.test, data)
    reestimate_batch_norm(net, iter([torch.randn(8, 1, 8, 8)]))
    assert [module.training for module in net.modules()] == modes


def test_a_run_without_a_checkpoint_resumes_at_its_beginning(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "checkpoint").load() is None
    (first, one), (second, other) = (training(tmp_path / name, epochs=1).run(resume=True) for name in ("a", "b"))
    assert first.widths == second.widths
    assert [record["epoch"] for record in one if record["kind"] == "epoch"] == [1]
    assert {**one[-1], "seconds": 0} == {**other[-1], "seconds": 0}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("optimizer"), "KeyError 'optimizer'"),
        (lambda state: state["model"].popitem(), "RuntimeError Error.* in loading state_dict"),
        (lambda state: state["position"].update(steps=3), "TypeError .*unexpected keyword argument 'steps'"),
        (lambda state: state["position"].update(metrics="["), "JSONDecodeError"),
    ],
)
def test_a_checkpoint_that_holds_something_else_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    """It is whole, and of this run."""
    training(tmp_path, epochs=1).run()
    checkpoints = Checkpoints(tmp_path / "checkpoint")
    state = checkpoints.load()
    assert state is not None
    change(state)
    checkpoints.save(state, 10**6)
    expected = rf"(?s)^the checkpoint does not hold what a run saves: {words}.*; start again with --overwrite$"
    with pytest.raises(ArtifactError, match=expected):
        training(tmp_path, epochs=1).run(resume=True)


def test_a_teacher_is_asked_only_where_somebody_listens() -> None:
    class Silent(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise AssertionError("asked")

    for alpha in (0.0, 0.5):
        asked = training(None, alpha=alpha)
        asked.teacher = Silent()
        with nullcontext() if alpha == 0 else pytest.raises(AssertionError, match="asked"):
            asked.run()


@pytest.mark.parametrize("teacher_flip", [True, False])
def test_a_teacher_answers_for_mirror_images_if_asked(monkeypatch: pytest.MonkeyPatch, teacher_flip: bool) -> None:
    seen, told = [], []

    def loss(student: Tensor, teacher: Tensor, *rest: Any) -> Tensor:
        told.append(teacher)
        return student.sum()

    monkeypatch.setattr("pdc_fx.distill.training.distillation_loss", loss)
    run = training(None, epochs=1, augment="flip", teacher_flip=teacher_flip, amp="no")
    teacher = copy.deepcopy(run.teacher).eval()
    run.teacher.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    run.run()
    seen = [images for images in seen if len(images) > 1]  # one tells how maps may lie
    batches = training_batches(run.data.with_augmentation("flip"), 32, seed=0, epoch=0)
    asked = len(seen) // len(told)
    for i, (target, (images, _)) in enumerate(zip(told, batches, strict=True)):
        assert torch.equal(seen[(i + 1) * asked - 1], images)  # asked last: the maps compared are theirs
        views = [images, images.flip(-1)] if teacher_flip else [images]
        torch.testing.assert_close(target, torch.stack([teacher(view) for view in views]).mean(0))
    assert not torch.allclose(teacher(images), teacher(images.flip(-1)))


def test_outside_of_the_main_thread_signals_are_left_alone() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with ThreadPoolExecutor(1) as pool:
        _, metrics = pool.submit(training(None, epochs=1).run).result()
    assert epochs_of(metrics)[-1]["epoch"] == 1
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_figures_for_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one class that is used of it, so that this is tested where the package is not installed."""
    written: list[tuple[str, str, int]] = []

    class SummaryWriter(nullcontext[Any]):
        def __init__(self, folder: str) -> None:
            super().__init__(self)
            self.folder = folder

        def add_scalar(self, name: str, value: float, at: int) -> None:
            written.append((self.folder, name, at))

    module: Any = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, module.__name__, module)
    training(tmp_path, epochs=1, print_freq=13, tensorboard=True).run()
    folder = str(tmp_path / "tensorboard")
    assert written == [
        *((folder, f"step/{name}", 13) for name in ("loss", "lr")),
        *((folder, f"epoch/{name}", 1) for name in ("train_accuracy", "residual", "macs")),
    ]
    monkeypatch.setitem(sys.modules, module.__name__, None)
    with pytest.raises(InputError, match=r"^--tensorboard needs a package; pip install tensorboard$"):
        training(tmp_path, epochs=1, tensorboard=True).run()


def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_the_checkpoint(tmp_path: Path) -> None:
    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += self.training
            return x * (float("nan") if self.calls > 7 else 1.0)

    net = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10), Breaks()
    )
    with pytest.raises(PdcError, match=r"the loss became nan in epoch 1, step 8; lower --lr"):
        training(tmp_path, net).run()
    assert [p.name for p in Checkpoints(tmp_path / "checkpoint").files()] == ["step-000000006.pt", "step-000000003.pt"]
    assert Checkpoints(tmp_path / "checkpoint").load() is not None


def test_a_full_disk_ends_the_run_and_leaves_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = os.fsync
    writes = 0

    def full(file: int) -> None:
        nonlocal writes
        writes += 1
        if writes > 2:
            raise OSError(28, "No space left on device")
        synced(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PdcError, match=r"the file cannot be written: No space left on device.*step-000000009"):
        training(tmp_path).run()
    monkeypatch.undo()
    assert sorted(p.name for p in (tmp_path / "checkpoint").iterdir()) == ["step-000000003.pt", "step-000000006.pt"]
    assert epochs_of(training(tmp_path).run(resume=True)[1])[-1]["epoch"] == 2


def pictures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ImageData:
    """Images that are decoded batch by batch."""
    monkeypatch.setattr("pdc_fx.data.assemble.IN_MEMORY_BYTES", 0)
    different_sizes(folder, "folder", 400)
    return open_data(f"folder:{folder}", input_shape=(3, 16, 16)).with_augmentation("none")


def on_pictures(data: ImageData, directory: Path, **options: Any) -> TiedTraining:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 2))
    clusters = plan(net, analyze(net, torch.zeros(1, 3, 16, 16)), flops_reduction=0.375)
    chosen = TrainOptions(
        **{"epochs": 1, "batch_size": 8, "amp": "no", "checkpoint_every": 5, "print_freq": 1, **options}
    )
    return TiedTraining(net, copy.deepcopy(net), clusters, data, None, chosen, "hard", directory, processes=Processes())


def test_an_image_that_breaks_on_the_way_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = pictures(tmp_path / "images", monkeypatch)
    run = on_pictures(data, tmp_path / "run")

    def spoil() -> None:
        for file in (tmp_path / "images" / "train").rglob("*.JPEG"):
            file.write_bytes(file.read_bytes()[:200])

    run.observer = Later(12, spoil)
    with pytest.raises(InputError, match=r"an image cannot be read.*\.JPEG"):
        run.run()
    state = Checkpoints(tmp_path / "run" / "checkpoint").load()
    assert state is not None
    assert state["position"]["step"] == 10


def test_a_worker_that_dies_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = on_pictures(pictures(tmp_path / "images", monkeypatch), tmp_path / "run", workers=1)

    def kill() -> None:
        for process in multiprocessing.active_children():
            process.kill()

    run.observer = Later(12, kill)
    with pytest.raises(PdcError, match="a data worker process died"):
        run.run()
    assert Checkpoints(tmp_path / "run" / "checkpoint").load() is not None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"amp": "fp16"}, "fp16 needs a GPU"),
        ({"calibration_batches": 0}, "calibration_batches must be at least 1"),
        ({"augment": "cifer"}, "no augmentation is called 'cifer'"),
        ({"teacher_flip": True}, "augmentation 'digits' makes none; leave --teacher-flip out, or"),
        ({"augment": "flip", "teacher_flip": True, "alpha": 0.0}, "teacher_flip needs a teacher"),
    ],
)
def test_what_cannot_be_trained_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        training(None, **options).run()


def test_a_pull_is_not_added_to_scaled_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pdc_fx.distill.training.half_precision", lambda *_: torch.float16)
    run = training(None)
    run.mode = "csgd"
    with pytest.raises(InputError, match="mode 'csgd' adds its pull to gradients, which fp16 multiplies"):
        run.run()


@pytest.mark.parametrize(
    "options",
    [
        {"opt": "adamw", "lr": 1e-3},
        {"sched": "step", "lr_step_size": 1},
        {"model_ema": True, "model_ema_decay": 0.9},
        {"label_smoothing": 0.1, "amp": "bf16", "channels_last": False},
        {"workers": 1, "augment": "imagenet"},
        pytest.param({"compile": True, "epochs": 1}, marks=pytest.mark.slow),
    ],
    ids=lambda o: "-".join(o),
)
def test_options_train_and_end_tied(options: dict[str, Any]) -> None:
    run = training(None, **options)
    before = run.model[0].weight.detach().clone()  # type: ignore[index, operator]
    _, metrics = run.run()
    assert epochs_of(metrics)[-1]["residual"] == 0
    assert not torch.equal(before, run.model[0].weight)  # type: ignore[index]


class Viewed(nn.Module):
    """Flattens as many do, by ``view``, which takes maps as they lie."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(channels, 8, 3), nn.Linear(288, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        return self.head(x.view(x.size(0), -1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_maps_may_be_flattened_by_view(channels: int, channels_last: bool) -> None:
    data = open_data("digits", input_shape=(channels, 8, 8))
    net, options = Viewed(channels), TrainOptions(epochs=1, amp="no", channels_last=channels_last)
    clusters = plan(net, analyze(net, torch.zeros(1, channels, 8, 8)), flops_reduction=0.375)
    run = TiedTraining(net, copy.deepcopy(net), clusters, data, None, options, "hard", processes=Processes())
    _, metrics = run.run()
    said = [record["reason"] for record in metrics if record["kind"] == "layout"]
    assert [reason.startswith("view size is not compatible") for reason in said] == [True] * channels_last


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "start"), [("pdc", "model"), ("hard", "calibrate")])
def test_two_processes_end_equal_and_tied(tmp_path: Path, mode: str, start: str) -> None:
    script = str(Path(__file__).with_name("train_ranks.py"))

    def ranks(count: int) -> list[dict[str, Any]]:
        directory = tmp_path / str(count)
        directory.mkdir()
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        found = subprocess.run(
            [*torchrun, script, str(directory), mode, start], capture_output=True, text=True, timeout=300
        )
        assert found.returncode == 0, found.stderr
        return [json.loads(line) for line in found.stdout.splitlines() if line.startswith("{")]

    alone, together = ranks(1), ranks(2)
    assert sorted(r["rank"] for r in together) == [0, 1]
    assert [r["residual"] for r in (*alone, *together)] == [0.0, 0.0, 0.0]
    assert together[0]["weights"] == together[1]["weights"]
    assert abs(alone[0]["accuracy"] - together[0]["accuracy"]) < 0.03
    assert alone[0]["accuracy"] > 0.9
    assert together[0]["written"] == ["checkpoint", "metrics.jsonl"]


@pytest.mark.slow
def test_two_processes_of_the_command_line_deliver_once(spec: str, tmp_path: Path) -> None:
    """Only the first writes and reports."""
    fixed = ["--data", "digits", "--flops-reduction", "0.375", "-b", "256", "--amp", "no", "--json"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "pdc_fx"]

    def ranks(name: str, *more: str) -> subprocess.CompletedProcess[str]:
        line = [*torchrun, "compress", spec, *fixed, "-o", str(tmp_path / name), *more]
        return subprocess.run(line, capture_output=True, text=True, timeout=300)

    whole = ranks("out", "--epochs", "1")
    assert whole.returncode == 0, whole.stderr
    (line,) = whole.stdout.splitlines()
    assert json.loads(line)["passed"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == ["net.py", "out"]
    refused = ranks("none", "--input", "1x1x9x9")
    assert refused.returncode == 1
    assert "error: the images are 1x8x8, the model's input is 1x9x9" in refused.stderr
    assert not (tmp_path / "none").exists()


def test_sharded_parameters_are_refused_in_a_loop_of_ones_own(tmp_path: Path) -> None:
    from torch.distributed.tensor import distribute_module

    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    clusters = plan(net, analyze(net, torch.zeros(1, 3, 8, 8)), flops_reduction=0.5)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        distribute_module(net, torch.distributed.init_device_mesh("cpu", (1,)))
        with pytest.raises(InputError, match=r"sharded over processes.*'0\.bias'"):
            tie(net, clusters, mode="hard")
    finally:
        torch.distributed.destroy_process_group()


def test_sharded_parameters_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match="sharded over processes"):
        Processes.of_environment()


def test_where_a_device_has_no_float64_the_cpu_takes_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    state = types.SimpleNamespace(distributed_type="NO", process_index=0, num_processes=1, device=torch.device("mps"))
    monkeypatch.setattr("accelerate.PartialState", lambda **_: state)
    assert Processes.of_environment().device == torch.device("cpu")
