"""CIFAR ResNets of He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition" (2015), section 4.2.

Three stages of 16, 32 and 64 channels with ``n`` blocks each, ``6 n + 2`` layers in all, and parameter-free shortcuts (option A):
where a stage begins, the input is subsampled and its missing channels are zeros.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INPUT_SHAPE = (1, 3, 32, 32)
"""Of one example input: batch, channels, height, width; pdc-fx looks for the attribute ``input_shape``."""


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut. ``(N, inputs, H, W) -> (N, outputs, H / stride, W / stride)``."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.missing = outputs - inputs

    def shortcut(self, x: Tensor) -> Tensor:
        """``x`` itself or, where a stage begins, every second pixel of it with zeros for the missing channels."""
        if self.stride == 1 and self.missing == 0:
            return x
        before = self.missing // 2
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, before, self.missing - before))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class CifarResNet(nn.Module):
    """``(N, 3, 32, 32) -> (N, num_classes)``."""

    input_shape = INPUT_SHAPE

    def __init__(self, blocks: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(blocks, 16, 16, stride=1)
        self.layer2 = self._stage(blocks, 16, 32, stride=2)
        self.layer3 = self._stage(blocks, 32, 64, stride=2)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(blocks: int, inputs: int, outputs: int, stride: int) -> nn.Sequential:
        first = Block(inputs, outputs, stride)
        return nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        scores: Tensor = self.linear(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        return scores


def _factory(depth: int) -> Callable[..., CifarResNet]:
    def make(num_classes: int = 10) -> CifarResNet:
        return CifarResNet((depth - 2) // 6, num_classes)

    make.__name__ = make.__qualname__ = f"resnet{depth}"
    make.__doc__ = f"ResNet-{depth}: ``(N, 3, 32, 32) -> (N, num_classes)``."
    make.input_shape = INPUT_SHAPE  # type: ignore[attr-defined]
    return make


resnet20, resnet32, resnet44, resnet56, resnet110 = map(_factory, (20, 32, 44, 56, 110))
