"""Compress a small network on digits, as ``torchrun`` starts it; each process prints one JSON object. Run by ``test_training.py``."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import pdc_fx
from pdc_fx.data import open_data
from pdc_fx.distill import Processes, TrainOptions
from pdc_fx.passes.tied import residual


class Embedding(nn.Module):
    """Logits, and beside them an embedding, whose parameters get no gradient."""

    def __init__(self, logits: nn.Module) -> None:
        super().__init__()
        self.logits, self.side = logits, nn.Linear(64, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.logits(x), self.side(x.flatten(1))


def main(directory: str, mode: str, start: str) -> None:
    torch.manual_seed(0)
    data = open_data("digits")
    model = Embedding(nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 10),
    ))  # fmt: skip
    options = TrainOptions(epochs=6, batch_size=64, amp="no", alpha=0.0, lr=0.1)
    made = pdc_fx.compress(
        model,
        torch.zeros(1, 1, 8, 8),
        data,
        flops_reduction=0.383,
        mode=mode,
        start=start,
        options=options,
        directory=Path(directory),
    )  # type: ignore[arg-type]
    content = b"".join(t.numpy().tobytes() for t in made.tied.state_dict().values())
    found = {
        "rank": Processes.of_environment().rank,
        "residual": float(residual(made.tied, made.plan)),
        "weights": hashlib.sha256(content).hexdigest(),
        "accuracy": made.accuracy["compact"],
        "written": sorted(p.name for p in Path(directory).iterdir()),
    }
    os.write(1, f"{json.dumps(found)}\n".encode())  # at once, since both processes write into one pipe
    if torch.distributed.is_initialized():  # threads of the group that are there when Python ends may abort it
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
