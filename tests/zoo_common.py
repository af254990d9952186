"""Blocks and the table entry shared by the zoo of hand-written networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Entry:
    """A network as somebody might write it, and what we expect of it.

    Attributes:
        build: makes the network with random weights.
        shapes: of its inputs, in order.
        merges: how many channels can be merged at least; 0 where the network must be refused as having nothing to merge.
        keeps_class: whether the result must still be of the user's own class, rather than an edited ``GraphModule``.
    """

    name: str
    build: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...] = ((2, 3, 16, 16),)
    merges: int = 1
    keeps_class: bool = False

    def __str__(self) -> str:
        return self.name

    def made(self) -> tuple[nn.Module, tuple[Tensor, ...]]:
        """The network in float64, always with the same weights, and its inputs."""
        torch.manual_seed(0)
        model = self.build().double().requires_grad_(False)
        return model, tuple(torch.randn(shape, dtype=torch.float64) for shape in self.shapes)


class ConvBN(nn.Module):
    """Convolution, batch norm, activation."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, **options: Any) -> None:
        super().__init__()
        act = options.pop("act", True)
        padding = options.pop("padding", kernel // 2 * options.get("dilation", 1))
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False, **options)
        self.bn = nn.BatchNorm2d(outputs)
        self.act = nn.SiLU() if act is True else act if isinstance(act, nn.Module) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.bn(self.conv(x)))
        return y


class Classifier(nn.Sequential):
    """``stem -> body -> global average -> linear``."""

    def __init__(self, *body: nn.Module, width: int, stem: int = 8, classes: int = 5) -> None:
        super().__init__(ConvBN(3, stem, 3), *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
