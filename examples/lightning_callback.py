"""Tying as a Lightning callback: ``Trainer(callbacks=[Shrink(student, example, 0.5)])``, then ``shrink.compact()``.

    python examples/lightning_callback.py
    python examples/lightning_callback.py --data parquet:DIR --limit 5000

``Shrink`` works beside any ``LightningModule`` that trains ``student``, with gradient accumulation and checkpoints.
"""

from __future__ import annotations

import argparse
import copy
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import pdc_fx
from pdc_fx.data import ImageData, collate, normalize, open_data
from pdc_fx.distill import accuracy, distillation_loss

try:
    import lightning.pytorch as L
except ImportError:
    print("this example needs Lightning: pip install lightning", file=sys.stderr)
    sys.exit(2)


class Shrink(L.Callback):
    """Ties ``student`` while it is trained, and gives the network with ``flops_reduction`` of its MACs removed."""

    def __init__(self, student: nn.Module, example: Tensor, flops_reduction: float) -> None:
        self.student, self.example, self.flops_reduction = student, example, flops_reduction
        self.restored: dict[str, Any] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tie; the weights are on their device now, and restored if the run goes on from a checkpoint."""
        example = self.example.to(pl_module.device)
        plan = pdc_fx.plan(self.student, pdc_fx.analyze(self.student, example), flops_reduction=self.flops_reduction)
        total = int(trainer.estimated_stepping_batches)
        self.tying = pdc_fx.tie(self.student, plan, mode="pdc", total_steps=total)
        if self.restored:
            self.tying.load_state_dict(self.restored)
        self.steps = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Follow the optimizer: ``global_step`` counts its steps, and stands still while gradients accumulate."""
        if trainer.global_step > self.steps:
            self.steps = trainer.global_step
            self.tying.step()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.plan = self.tying.snap()  # before the weights leave their device

    def compact(self) -> nn.Module:
        """The smaller network, after ``trainer.fit``, which leaves the weights on the CPU."""
        return pdc_fx.rewrite(self.student.eval(), self.plan, self.example)

    def state_dict(self) -> dict[str, Any]:  # into Lightning's checkpoints
        return (
            self.tying.state_dict() if hasattr(self, "tying") else {}
        )  # a search for a learning rate saves before training

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # from them; applied when training starts
        self.restored = state_dict


class Distil(L.LightningModule):
    """Trains ``student`` on the labels, and on what ``teacher`` says if there is one."""

    def __init__(self, student: nn.Module, data: ImageData, teacher: nn.Module | None = None) -> None:
        super().__init__()
        self.student, self.data, self.teacher = student, data, teacher

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        return normalize(batch[0], self.data.mean, self.data.std), batch[1]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self.student(images)
        if self.teacher is None:
            return nn.functional.cross_entropy(logits, labels)
        with torch.no_grad():
            targets = self.teacher.eval()(images)
        return distillation_loss(logits, targets, labels, alpha=0.7, temperature=4.0)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


def make_model(channels: int, classes: int) -> nn.Module:
    """A small network; put yours here. ``(N, channels, H, W) -> (N, classes)``."""
    layers: list[nn.Module] = []
    for i, o, stride in ((channels, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1)):
        layers += [nn.Conv2d(i, o, 3, stride, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def main() -> int:
    """Run the example; 0 if the compact network is the tied one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="digits", help="as pdc_fx.data.open_data takes it")
    parser.add_argument("--limit", type=int, default=2000, help="use so many images to train, and to test")
    parser.add_argument("--epochs", type=int, default=12, help="of the teacher, and of tied training")
    args = parser.parse_args()
    L.seed_everything(0, verbose=False)
    data = open_data(args.data)
    train, test = (images.subset(range(min(args.limit, len(images)))) for images in (data.train, data.test))
    loader = DataLoader(train, 32, shuffle=True, drop_last=True, collate_fn=collate)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"max_epochs": args.epochs, "enable_checkpointing": False}

    teacher = make_model(data.image_shape[0], len(data.classes))
    L.Trainer(**quiet).fit(Distil(teacher, data), loader)
    student = copy.deepcopy(teacher)
    shrink = Shrink(student, torch.zeros(1, *data.image_shape), flops_reduction=0.5)
    trainer = L.Trainer(callbacks=[shrink], accumulate_grad_batches=2, gradient_clip_val=5.0, **quiet)
    trainer.fit(Distil(student, data, teacher), loader)
    compact = shrink.compact()

    images = torch.randn(64, *data.image_shape, dtype=torch.float64)
    with torch.no_grad():  # in float64, so that only rounded weights are left to differ
        want, got = (copy.deepcopy(model).double()(images) for model in (student, compact))
    error = float((want - got).abs().max() / want.abs().max())
    scores = [accuracy(model, test, data) for model in (teacher, student, compact)]
    print(f"{trainer.global_step} optimizer steps; accuracy: ", end="")
    print("teacher {:.2%}, tied {:.2%}, compact {:.2%}".format(*scores))
    print(f"MACs: {shrink.plan.macs_before:,} before, {shrink.plan.macs_after:,} after")
    print(f"relative error: tied to compact {error:.1e}")
    return 0 if error < 1e-5 else 1


if __name__ == "__main__":
    sys.exit(main())
