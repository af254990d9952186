"""The zoo, part two: convolutional classifiers and the blocks they are known for."""

# ruff: noqa: E501 - a table: one row an entry

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo_common import Classifier, ConvBN, Entry


class ShuffleUnit(nn.Module):
    """Half of the channels pass, half are worked on; both are interleaved."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(
            ConvBN(half, half), ConvBN(half, half, 3, groups=half, act=False), ConvBN(half, half)
        )

    def forward(self, x: Tensor) -> Tensor:
        kept, worked = x.chunk(2, dim=1)
        y = torch.cat((kept, self.branch(worked)), dim=1)
        b, c, h, w = y.size()
        return y.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, -1, h, w)


class Ghost(nn.Module):
    """Some features from a convolution, more from a cheap depthwise one, cut to the width asked for."""

    def __init__(self, inputs: int, outputs: int, relu: bool = True) -> None:
        super().__init__()
        self.outputs, first = outputs, math.ceil(outputs / 2)
        act = nn.ReLU() if relu else nn.Identity()
        self.primary = ConvBN(inputs, first, act=act)
        self.cheap = ConvBN(first, first, 3, groups=first, act=act)

    def forward(self, x: Tensor) -> Tensor:
        one = self.primary(x)
        return torch.cat([one, self.cheap(one)], dim=1)[:, : self.outputs, :, :]


class GhostBottleneck(nn.Module):
    def __init__(self, inputs: int, middle: int, outputs: int) -> None:
        super().__init__()
        self.expand, self.reduce = Ghost(inputs, middle), Ghost(middle, outputs, relu=False)
        self.shortcut = nn.Sequential() if inputs == outputs else ConvBN(inputs, outputs, act=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.reduce(self.expand(x)) + self.shortcut(x)
        return y


class SE(nn.Module):
    """Squeeze-and-excitation with linear layers and views."""

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(nn.Linear(width, squeezed), nn.ReLU(), nn.Linear(squeezed, width), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        gate = self.fc(self.pool(x).view(b, c)).view(b, c, 1, 1)
        return x * gate.expand_as(x)


class ECA(nn.Module):
    """A gate from a convolution along the channel axis."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.adaptive_avg_pool2d(x, 1)
        y = self.conv(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * torch.sigmoid(y).expand_as(x)


class CBAM(nn.Module):
    """A gate by channel, then one by place from the mean and the maximum over channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Conv2d(width, 4, 1), nn.ReLU(), nn.Conv2d(4, width, 1))
        self.space = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.sigmoid(self.mlp(F.adaptive_avg_pool2d(x, 1)) + self.mlp(F.adaptive_max_pool2d(x, 1)))
        places = torch.cat([x.mean(dim=1, keepdim=True), torch.max(x, dim=1, keepdim=True)[0]], dim=1)
        return x * torch.sigmoid(self.space(places))


class RepVGG(nn.Module):
    """3x3, 1x1 and identity branches, each with a batch norm, summed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.three, self.one = ConvBN(width, width, 3, act=False), ConvBN(width, width, act=False)
        self.identity = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.three(x) + self.one(x) + self.identity(x))


class Res2Net(nn.Module):
    """Parts of the channels go through convolutions one after the other, each with the result of the last added."""

    def __init__(self, width: int, scale: int = 4) -> None:
        super().__init__()
        self.part, self.scale = width // scale, scale
        self.enter, self.leave = ConvBN(width, width), ConvBN(width, width, act=False)
        self.convs = nn.ModuleList(ConvBN(self.part, self.part, 3) for _ in range(scale - 1))

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(self.enter(x), self.part, 1)
        outputs, y = [], parts[0]
        for i, conv in enumerate(self.convs):
            y = conv(parts[i] if i == 0 else y + parts[i])
            outputs.append(y)
        outputs.append(parts[-1])
        return F.relu(self.leave(torch.cat(outputs, 1)) + x)


class DenseBlock(nn.Module):
    def __init__(self, inputs: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(w), nn.ReLU(True), nn.Conv2d(w, growth, 3, padding=1, bias=False))
            for w in range(inputs, inputs + layers * growth, growth)
        )
        self.leave = nn.Sequential(nn.BatchNorm2d(inputs + layers * growth), nn.ReLU(), nn.AvgPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        y: Tensor = self.leave(torch.cat(features, 1))
        return y


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, then an MLP with channels last and a layer scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm, self.enter, self.leave = nn.LayerNorm(width), nn.Linear(width, 16), nn.Linear(16, width)
        self.gamma = nn.Parameter(1e-6 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.leave(F.gelu(self.enter(y)))
        return x + y.permute(0, 3, 1, 2)


class SameConv(nn.Conv2d):
    """Padding as in TensorFlow, worked out from the input's size."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for size, kernel, stride in zip(x.shape[:-3:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            need = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            pads += [need // 2, need - need // 2]
        if any(pads):
            x = F.pad(x, pads)
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class MBConv(nn.Module):
    """Inverted residual with squeeze-and-excitation and stochastic depth."""

    def __init__(self, inputs: int, outputs: int, expand: int, conv: type[nn.Conv2d], stride: int = 1) -> None:
        super().__init__()
        wide = inputs * expand
        self.enter = nn.Sequential(nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.SiLU())
        self.depthwise = conv(wide, wide, 3, stride, 1, groups=wide, bias=False)
        self.norm, self.residual = nn.BatchNorm2d(wide), inputs == outputs and stride == 1
        self.squeeze, self.excite = nn.Conv2d(wide, 4, 1), nn.Conv2d(4, wide, 1)
        self.leave = nn.Sequential(nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.norm(self.depthwise(self.enter(x))))
        gate = self.excite(F.silu(self.squeeze(y.mean((2, 3), keepdim=True))))
        y = self.leave(y * gate.sigmoid())
        if self.residual:
            if self.training:
                y = y * torch.bernoulli(torch.full((len(x), 1, 1, 1), 0.8)).div(0.8)
            y = y + x
        return y


class GroupNormBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.norm1, self.norm2 = nn.GroupNorm(2, width), nn.GroupNorm(2, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.second(F.relu(self.norm1(self.first(x)))))
        return F.relu(x + y)


class SplitAttention(nn.Module):
    """ResNeSt: a grouped convolution makes two versions of each channel, a softmax over the versions weighs them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = ConvBN(width, 2 * width, 3, groups=2)
        self.squeeze, self.excite = nn.Conv2d(width, 6, 1), nn.Conv2d(6, 2 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        b, c = y.shape[:2]
        y = y.view(b, 2, c // 2, *y.shape[2:])
        gate = self.excite(F.relu(self.squeeze(y.sum(1).mean((2, 3), keepdim=True))))
        return (y * gate.view(b, 2, c // 2, 1, 1).softmax(1)).sum(1)


class Selective(nn.Module):
    """SKNet: two kernel sizes, weighed by a softmax over stacked gates."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList([ConvBN(width, width, 3), ConvBN(width, width, 3, dilation=2)])
        self.squeeze, self.excite = nn.Linear(width, 6), nn.ModuleList(nn.Linear(6, width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.stack([branch(x) for branch in self.branches], dim=1)
        code = F.relu(self.squeeze(maps.sum(dim=1).mean(-1).mean(-1)))
        gates = torch.stack([excite(code) for excite in self.excite], dim=1).softmax(dim=1)
        return (maps * gates[:, :, :, None, None]).sum(dim=1)


class Fire(nn.Module):
    def __init__(self, inputs: int, squeezed: int, outputs: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.left, self.right = nn.Conv2d(squeezed, outputs, 1), nn.Conv2d(squeezed, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x), inplace=True)
        return torch.cat([F.relu(self.left(x), inplace=True), F.relu(self.right(x), inplace=True)], 1)


class Maxout(nn.Module):
    """The larger of two halves of the channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, 2 * outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.split(self.conv(x), self.conv.out_channels // 2, 1)
        return torch.max(first, second)


class LeNet(nn.Module):
    """The classic: features, a literal view and three linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(16 * 5 * 5, 20), nn.Linear(20, 12), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(-1, 16 * 5 * 5)
        return F.log_softmax(self.fc3(F.relu(self.fc2(F.relu(self.fc1(x))))), dim=1)


CLASSIFY = (
    Entry("shuffle", lambda: Classifier(ShuffleUnit(8), ShuffleUnit(8), width=8), merges=24),
    Entry("ghost", lambda: Classifier(GhostBottleneck(8, 14, 8), GhostBottleneck(8, 10, 7), width=7), merges=19),
    Entry("se", lambda: Classifier(SE(8, 4), ConvBN(8, 12, 3), SE(12, 4), width=12), merges=28, keeps_class=True),
    Entry("eca", lambda: Classifier(ECA(), ConvBN(8, 12, 3), width=12), merges=12),
    Entry("cbam", lambda: Classifier(CBAM(8), ConvBN(8, 12, 3), width=12), merges=24),
    Entry("repvgg", lambda: Classifier(RepVGG(8), RepVGG(8), width=8), merges=8, keeps_class=True),
    Entry("res2net", lambda: Classifier(Res2Net(8), Res2Net(8), width=8), merges=28),
    Entry("dense", lambda: Classifier(DenseBlock(8, 4, 3), DenseBlock(20, 4, 2), width=28), merges=28, keeps_class=True),
    Entry("convnext", lambda: Classifier(ConvNeXtBlock(8), ConvNeXtBlock(8), width=8), merges=40, keeps_class=True),
    Entry("same_padding", lambda: nn.Sequential(SameConv(3, 8, 3, 2), nn.ReLU(), SameConv(8, 4, 3, 2)), ((2, 3, 15, 16),), 8, True),
    Entry("mbconv", lambda: Classifier(MBConv(8, 8, 2, nn.Conv2d), MBConv(8, 12, 2, nn.Conv2d, 2), width=12), merges=60, keeps_class=True),
    Entry("mbconv_same", lambda: Classifier(MBConv(8, 8, 2, SameConv), MBConv(8, 12, 2, SameConv, 2), width=12), merges=60, keeps_class=True),
    Entry("group_norm", lambda: Classifier(GroupNormBlock(8), GroupNormBlock(8), width=8), merges=24),
    Entry("split_attention", lambda: Classifier(SplitAttention(8), ConvBN(8, 12), width=12), merges=30),
    Entry("selective", lambda: Classifier(Selective(8), ConvBN(8, 12), width=12), merges=34),
    Entry("fire", lambda: Classifier(Fire(8, 4, 6), Fire(12, 4, 8), width=16), merges=44, keeps_class=True),
    Entry("maxout", lambda: Classifier(Maxout(8, 6), width=6), merges=14),
    Entry("lenet", LeNet, ((2, 3, 32, 32),), merges=54),
)  # fmt: skip
