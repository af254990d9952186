"""The demonstration: train a real teacher on scikit-learn's digits, compress it, export and verify it, in about a minute."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pdc_fx.artifacts import deliver, onnx_accuracy
from pdc_fx.data import ImageData, batches_per_epoch, open_data, training_batches
from pdc_fx.directory import ONNX
from pdc_fx.distill import Observer, TrainOptions, distillation_loss, learning_rate
from pdc_fx.errors import Interrupted
from pdc_fx.export.benchmark import BenchmarkReport, benchmark
from pdc_fx.export.onnx import export_onnx
from pdc_fx.pipeline import compress
from pdc_fx.staging import Staging

INPUT = (1, 1, 8, 8)
REDUCTION = 0.65
EPOCHS = 40


class DigitNet(nn.Module):
    """A small residual network for 8 x 8 grey images: 92 k parameters."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.block1 = self._branch(width)
        self.block2 = self._branch(width)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(width * 16, 10))

    @staticmethod
    def _branch(width: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.block1(x))
        x = self.pool(torch.relu(x + self.block2(x)))
        scores: Tensor = self.head(x)
        return scores


@dataclass(frozen=True)
class DemoResult:
    """What the closing table shows."""

    certificate: dict[str, Any]
    timing: BenchmarkReport
    dense_bytes: int
    compact_bytes: int
    dense_onnx_accuracy: float


def train_teacher(data: ImageData, seed: int = 0, epochs: int = 30) -> nn.Module:
    """A teacher trained from scratch on the labels alone."""
    torch.manual_seed(seed)
    model = DigitNet()
    steps = batches_per_epoch(len(data.train), 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate(TrainOptions(epochs=epochs), steps))
    for epoch in range(epochs):
        for images, labels in training_batches(data, 64, seed=seed, epoch=epoch):
            logits = model(images)
            loss = distillation_loss(logits, logits.detach(), labels, alpha=0.0, temperature=1.0)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return model.eval()


def run(directory: Path | None, observer: Observer | None, *, overwrite: bool = False, seed: int = 0) -> DemoResult:
    """Run the demonstration; keep its output in ``directory`` if one is given."""
    data = open_data("digits")
    with tempfile.TemporaryDirectory() as scratch:
        staging = Staging(directory or Path(scratch) / "digits", overwrite=overwrite)
        try:
            with staging:
                result = _run(data, staging, observer, seed, Path(scratch))
        except Interrupted as error:  # whose hint speaks of a checkpoint, which is gone
            raise Interrupted(error.what, signal=error.exit_code - 128) from error
        if result.certificate["passed"]:
            staging.publish()
        else:
            staging.discard()
        return result


def _run(data: ImageData, staging: Staging, observer: Observer | None, seed: int, scratch: Path) -> DemoResult:
    teacher = train_teacher(data, seed)
    options = TrainOptions(epochs=EPOCHS, batch_size=64, lr=0.05, alpha=0.7, amp="no", channels_last=False, seed=seed)
    source = {"model": "pdc_fx.demo:DigitNet", "data": "digits", "command": "pdc-fx demo"}
    example = torch.zeros(INPUT)
    compressed = compress(
        teacher,
        example,
        data,
        flops_reduction=REDUCTION,
        allocation="uniform",
        options=options,
        directory=staging.path,
        observer=observer,
        source=source,
    )

    right = onnx_accuracy(data)
    dense = export_onnx(teacher, example, scratch / "dense.onnx")
    timings: list[BenchmarkReport] = []

    def timed(path: Path) -> BenchmarkReport:
        timings.append(benchmark(dense.path, path, batch_sizes=(1,), macs=compressed.plan.macs_of_one))
        return timings[0]

    certificate = deliver(compressed, staging.path, right, timed)
    compact = staging.path / ONNX
    return DemoResult(certificate, timings[0], dense.bytes, compact.stat().st_size, right(dense.path))
