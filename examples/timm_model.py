"""Tying a timm model in a script in the style of torchvision's ``references/classification/train.py``.

    python examples/timm_model.py
    python examples/timm_model.py --model regnetx_002 --data-path parquet:DIR --opt adamw --lr 0.001

The teacher is trained here, a little, from random weights; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

import pdc_fx
from pdc_fx.data import batches_per_epoch, evaluation_batches, open_data, training_batches
from pdc_fx.distill import distillation_loss

try:
    import timm
except ImportError:
    print("this example needs timm: pip install timm", file=sys.stderr)
    sys.exit(2)

Loader = Iterable[tuple[Tensor, Tensor]]


def train_one_epoch(
    model: nn.Module,
    teacher: nn.Module | None,
    tying: pdc_fx.Tying | None,
    optimizer: torch.optim.Optimizer,
    data_loader: Loader,
    scaler: torch.amp.GradScaler,
    args: argparse.Namespace,
) -> None:
    """One pass over the training images; with a teacher under distillation, with ``tying`` tied."""
    model.train()
    for image, target in data_loader:
        with torch.autocast(image.device.type, torch.float16, enabled=args.amp):
            output = model(image)
            with torch.no_grad():
                soft = output if teacher is None else teacher(image)
        alpha = 0.0 if teacher is None else 0.7
        loss = distillation_loss(output.float(), soft.float(), target, alpha=alpha, temperature=4.0)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if tying is not None:
            tying.step()


@torch.inference_mode()
def evaluate(model: nn.Module, data_loader: Loader) -> float:
    """Top-1 accuracy, 0 to 1."""
    model.eval()
    hits = [(model(image).argmax(1) == target).float() for image, target in data_loader]
    return float(torch.cat(hits).mean())


def main() -> int:
    """Run the example; 0 if the compact network is the tied one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-path", default="digits", help="as pdc_fx.data.open_data takes it")
    parser.add_argument("--limit", type=int, default=2000, help="use so many images to train, and to test")
    parser.add_argument("--model", default="resnet10t", help="a name that timm knows")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("-b", "--batch-size", default=64, type=int)
    parser.add_argument("--epochs", default=5, type=int, help="of the teacher, and of tied training")
    parser.add_argument("--opt", default="sgd", choices=("sgd", "adamw"))
    parser.add_argument("--lr", default=0.05, type=float)
    parser.add_argument("--wd", "--weight-decay", default=1e-4, type=float, dest="weight_decay")
    parser.add_argument("--amp", action="store_true", help="float16 where it is safe, with scaled gradients; on a GPU")
    args = parser.parse_args()
    if args.amp and torch.device(args.device).type != "cuda":
        parser.error("--amp needs a GPU")
    torch.manual_seed(0)
    data = open_data(args.data_path, input_shape=(1, 16, 16) if args.data_path == "digits" else None)
    train_set, test_set = (images.subset(range(min(args.limit, len(images)))) for images in (data.train, data.test))
    data = replace(data, train=train_set, test=test_set)
    example = torch.zeros(1, *data.image_shape, device=args.device)
    scaler = torch.amp.GradScaler(enabled=args.amp)

    def train(model: nn.Module, teacher: nn.Module | None, tying: pdc_fx.Tying | None) -> None:
        kind = torch.optim.AdamW if args.opt == "adamw" else partial(torch.optim.SGD, momentum=0.9)
        optimizer = kind(model.parameters(), lr=args.lr, weight_decay=args.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
        for epoch in range(args.epochs):
            loader = training_batches(data, args.batch_size, seed=0, epoch=epoch, device=args.device)
            train_one_epoch(model, teacher, tying, optimizer, loader, scaler, args)
            schedule.step()
            print(f"{'teacher' if teacher is None else 'tied'}, epoch {epoch + 1}: accuracy {accuracy(model):.2%}")

    def accuracy(model: nn.Module) -> float:
        return evaluate(model, evaluation_batches(data.test, data, device=args.device))

    teacher = timm.create_model(args.model, num_classes=len(data.classes), in_chans=data.image_shape[0]).to(args.device)
    train(teacher, None, None)
    teacher.eval()

    model = copy.deepcopy(teacher)
    plan = pdc_fx.plan(model, pdc_fx.analyze(model, example), flops_reduction=0.5)
    tying = pdc_fx.tie(model, plan, mode="hard")
    train(model, teacher, tying)
    plan = tying.snap()
    compact = pdc_fx.rewrite(model, plan, example)

    images = torch.randn(64, *data.image_shape, dtype=torch.float64, device=args.device)
    with torch.no_grad():  # in float64, so that only rounded weights are left to differ
        want, got = (copy.deepcopy(network).double().eval()(images) for network in (model, compact))
    error = float((want - got).abs().max() / want.abs().max())
    steps = args.epochs * batches_per_epoch(len(data.train), args.batch_size)
    print(f"{steps} optimizer steps; accuracy: ", end="")
    print("teacher {:.2%}, tied {:.2%}, compact {:.2%}".format(*map(accuracy, (teacher, model, compact))))
    print(f"MACs: {plan.macs_before:,} before, {plan.macs_after:,} after")
    print(f"relative error: tied to compact {error:.1e}")
    return 0 if error < 1e-5 else 1


if __name__ == "__main__":
    sys.exit(main())
