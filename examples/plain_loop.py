"""Tying in a plain PyTorch loop: gradient accumulation, clipping, bf16 autocast, a moving average of the weights, ONNX.

    python examples/plain_loop.py
    python examples/plain_loop.py --data parquet:DIR --limit 5000 --opt adamw --lr 0.002 --amp

What tying adds to the loop is one line, ``tying.step()`` after ``optimizer.step()``.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import pdc_fx
from pdc_fx.data import ImageData, open_data, training_batches
from pdc_fx.distill import accuracy, distillation_loss


def make_model(channels: int, classes: int) -> nn.Module:
    """A small network; put yours here. ``(N, channels, H, W) -> (N, classes)``."""
    layers: list[nn.Module] = []
    for i, o, stride in ((channels, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1)):
        layers += [nn.Conv2d(i, o, 3, stride, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def batches(data: ImageData, size: int, epochs: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All batches of all epochs: float32 [B, C, H, W], int64 [B]."""
    return (batch for epoch in range(epochs) for batch in training_batches(data, size, seed=0, epoch=epoch))


def train_teacher(model: nn.Module, data: ImageData, epochs: int) -> nn.Module:
    """Stands for the network that you have trained already."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for images, labels in batches(data, 64, epochs):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model.eval()


def main() -> int:
    """Run the example; 0 if the compact network is the tied one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="digits", help="as pdc_fx.data.open_data takes it")
    parser.add_argument("--limit", type=int, default=2000, help="use so many images to train, and to test")
    parser.add_argument("--epochs", type=int, default=12, help="of the teacher, and of tied training")
    parser.add_argument("--opt", choices=("sgd", "adamw"), default="sgd")
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--amp", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--onnx", default="compact.onnx", help="the file to write")
    args = parser.parse_args()
    torch.manual_seed(0)
    data = open_data(args.data)
    train, test = (images.subset(range(min(args.limit, len(images)))) for images in (data.train, data.test))
    data = replace(data, train=train, test=test)
    example = torch.zeros(1, *data.image_shape)

    teacher = train_teacher(make_model(data.image_shape[0], len(data.classes)), data, args.epochs)
    model = copy.deepcopy(teacher)
    plan = pdc_fx.plan(model, pdc_fx.analyze(model, example), flops_reduction=0.5)
    tying = pdc_fx.tie(model, plan, mode="hard")

    # The average starts from tied weights and sees only tied weights, so it stays tied.
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.95), use_buffers=True)
    kind = torch.optim.AdamW if args.opt == "adamw" else partial(torch.optim.SGD, momentum=0.9)
    optimizer = kind(model.parameters(), lr=args.lr)
    steps = 0
    model.train()
    for number, (images, labels) in enumerate(batches(data, 32, args.epochs), 1):
        with torch.autocast(images.device.type, torch.bfloat16, enabled=args.amp):
            with torch.no_grad():
                targets = teacher(images)
            logits = model(images)
        loss = distillation_loss(logits.float(), targets.float(), labels, alpha=0.7, temperature=4.0)
        (loss / 2).backward()
        if number % 2:  # gradients of two batches make a step
            continue
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        tying.step()  # after each optimizer step, before anything reads the new weights
        optimizer.zero_grad()
        average.update_parameters(model)
        steps += 1

    # Statistics of equal channels may differ in the last bit once they are measured anew: snap after update_bn.
    tied = average.module
    update_bn(batches(data, 64, 1), tied)
    plan = pdc_fx.tie(tied, tying.snap(), mode="hard").snap()
    compact = pdc_fx.rewrite(tied.eval(), plan, example)  # compares both in float64, and refuses if they differ
    pdc_fx.export_onnx(compact, example, args.onnx)
    onnx = pdc_fx.verify_onnx(compact, args.onnx, example)

    images = torch.randn(64, *data.image_shape, dtype=torch.float64)
    with torch.no_grad():  # in float64, so that only rounded weights are left to differ
        want, got = (copy.deepcopy(network).double()(images) for network in (tied, compact))
    error = float((want - got).abs().max() / want.abs().max())
    scores = [accuracy(network, test, data) for network in (teacher, tied, compact)]
    print(f"{steps} optimizer steps; accuracy: ", end="")
    print("teacher {:.2%}, tied {:.2%}, compact {:.2%}".format(*scores))
    print(f"MACs: {plan.macs_before:,} before, {plan.macs_after:,} after")
    print(f"relative error: tied to compact {error:.1e}, compact to {args.onnx} {onnx.max_rel_error:.1e}")
    return 0 if error < 1e-5 and onnx.passed else 1


if __name__ == "__main__":
    sys.exit(main())
