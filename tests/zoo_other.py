"""The zoo, part three: attention, other dimensions, odd inputs and outputs, and unusual ways to write a forward pass."""

# ruff: noqa: E501 - a table: one row an entry

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from zoo_common import Classifier, ConvBN, Entry


class MapAttention(nn.Module):
    """Self-attention over the places of a map: one 1x1 convolution for q, k and v, reshaped into heads."""

    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.qkv, self.project = heads, nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(x).reshape(b, 3, self.heads, c // self.heads, h * w).unbind(1)
        attention = (q.transpose(-2, -1) @ k * (c // self.heads) ** -0.5).softmax(dim=-1)
        y: Tensor = x + self.project((v @ attention.transpose(-2, -1)).reshape(b, c, h, w))
        return y


class NonLocal(nn.Module):
    """Embedded Gaussian non-local block; its last batch norm starts at zero."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.theta, self.phi, self.g = (nn.Conv2d(width, inner, 1) for _ in range(3))
        self.out = nn.Sequential(nn.Conv2d(inner, width, 1), nn.BatchNorm2d(width))
        nn.init.zeros_(self.out[1].weight)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        theta = self.theta(x).view(n, -1, h * w).permute(0, 2, 1)
        weights = F.softmax(torch.bmm(theta, self.phi(x).view(n, -1, h * w)), dim=-1)
        y = torch.bmm(weights, self.g(x).view(n, -1, h * w).permute(0, 2, 1)).permute(0, 2, 1).contiguous()
        z: Tensor = x + self.out(y.view(n, -1, h, w))
        return z


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(0.1), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2]).transpose(1, 2).reshape(b, n, c)
        x = x + self.project(y)
        z: Tensor = x + self.mlp(self.norm2(x))
        return z


class ViT(nn.Module):
    """Patches by a convolution, a class token, learned positions, a head that starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.token, self.place = nn.Parameter(torch.zeros(1, 1, 8)), nn.Parameter(torch.randn(1, 17, 8) * 0.02)
        self.blocks = nn.ModuleList(Block(8, 2, 12) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.place
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.head(self.norm(x)[:, 0])
        return y


class Siamese(nn.Module):
    """One backbone for two inputs; their difference is judged."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(ConvBN(3, 8, 3, 2), ConvBN(8, 12, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.judge = nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 1))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        y: Tensor = self.judge(torch.abs(self.backbone(left) - self.backbone(right)))
        return y


class Heads(nn.Module):
    """A dict of outputs from a ModuleDict, and nested ones."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.ModuleDict({"a": ConvBN(3, 8, 3), "b": ConvBN(8, 10, 3)})
        self.heads = nn.ModuleDict({name: nn.Linear(10, n) for name, n in (("age", 1), ("kind", 4))})

    def forward(self, x: Tensor) -> dict[str, object]:
        for stage in self.trunk.values():
            x = stage(x)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        outputs: dict[str, object] = {name: head(x) for name, head in self.heads.items()}
        return {"heads": outputs, "norm": x.norm(dim=1)}


class Audio(nn.Module):
    """Dilated causal convolutions with gates, residual and skip sums, as in WaveNet."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv1d(1, 8, 1)
        self.gated = nn.ModuleList(nn.Conv1d(8, 12, 2, dilation=d) for d in (1, 2, 4))
        self.residual = nn.ModuleList(nn.Conv1d(6, 8, 1) for _ in range(3))
        self.skip = nn.ModuleList(nn.Conv1d(6, 10, 1) for _ in range(3))
        self.leave = nn.Sequential(nn.ReLU(), nn.Conv1d(10, 8, 1), nn.ReLU(), nn.Conv1d(8, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.enter(x), None
        for gated, residual, skip in zip(self.gated, self.residual, self.skip, strict=True):
            wave, gate = gated(F.pad(x, (gated.dilation[0], 0))).chunk(2, dim=1)
            y = torch.tanh(wave) * torch.sigmoid(gate)
            total = skip(y) if total is None else total + skip(y)
            x = x + residual(y)
        z: Tensor = self.leave(total)
        return z


class Video(nn.Module):
    """(2+1)-dimensional convolutions and a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(3, 6, (1, 3, 3), padding=(0, 1, 1), bias=False),
            nn.BatchNorm3d(6),
            nn.ReLU(),
            nn.Conv3d(6, 8, (3, 1, 1), padding=(1, 0, 0)),
            nn.MaxPool3d((1, 2, 2)),
        )
        self.head = nn.Linear(8 * 4 * 3 * 3, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.body(x).flatten(1))
        return y


class TemporalShift(nn.Module):
    """Some channels come from the frame before, some from the one after."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.frames, self.stem, self.conv = frames, ConvBN(3, 8, 3), ConvBN(8, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, c, h, w = x.size()
        x = x.view(n // self.frames, self.frames, c, h, w)
        fold = c // 4
        shifted = torch.zeros_like(x)
        shifted[:, :-1, :fold] = x[:, 1:, :fold]
        shifted[:, 1:, fold : 2 * fold] = x[:, :-1, fold : 2 * fold]
        shifted[:, :, 2 * fold :] = x[:, :, 2 * fold :]
        y = self.conv(shifted.view(n, c, h, w)).mean((2, 3))
        z: Tensor = self.head(y.view(-1, self.frames, 8).mean(1))
        return z


class ConvLSTM(nn.Module):
    """A convolutional encoder, its columns read by an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(ConvBN(1, 6, 3), nn.MaxPool2d(2), ConvBN(6, 8, 3), nn.MaxPool2d((4, 1)))
        self.lstm, self.head = nn.LSTM(16, 7, bidirectional=True, batch_first=True), nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(x)
        b, c, h, w = x.shape
        y, _ = self.lstm(x.reshape(b, c * h, w).permute(0, 2, 1))
        z: Tensor = self.head(y)
        return z


class Functional(nn.Module):
    """Parameters of its own and functional calls, one of them used twice, one transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.randn(8, 3, 3, 3) * 0.2), nn.Parameter(torch.randn(8))
        self.w2, self.w3 = nn.Parameter(torch.randn(8, 8, 3, 3) * 0.1), nn.Parameter(torch.randn(8, 5))
        self.register_buffer("mean", torch.rand(8))
        self.register_buffer("var", torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.w1, self.b1, padding=1))
        x = x + F.conv2d(F.conv2d(x, self.w2, padding=1).relu(), self.w2, padding=1)
        x = F.batch_norm(x, self.mean, self.var)
        return x.mean((2, 3)) @ self.w3


class EarlyExit(nn.Module):
    """Goes on only where the first guess is not sure enough."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold, self.first, self.second = threshold, ConvBN(3, 8, 3), ConvBN(8, 12, 3)
        self.guess, self.head = nn.Linear(8, 4), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        guess: Tensor = self.guess(x.mean((2, 3)))
        if guess.softmax(1).max().item() > self.threshold:
            return guess
        y: Tensor = self.head(self.second(x).mean((2, 3)))
        return y


class CoordConv(nn.Module):
    """Two channels of coordinates beside the features."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.head = ConvBN(3, 8, 3), ConvBN(10, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, _, h, w = x.shape
        ys, xs = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
        where = torch.stack([ys, xs]).to(x).unsqueeze(0).expand(b, -1, -1, -1)
        y: Tensor = self.head(self.conv(torch.cat([x, where], 1)))
        return y


class SpatialTransformer(nn.Module):
    """A small network predicts how the map is warped before it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.where = ConvBN(3, 8, 3), nn.Linear(8 * 16, 6)
        self.head = nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        theta = self.where(F.adaptive_avg_pool2d(x, 4).flatten(1)).view(-1, 2, 3)
        warped = F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)
        y: Tensor = self.head(warped)
        return y


class Mixer(nn.Module):
    """MLP-Mixer without norms: linear layers over places, then over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.places = nn.Sequential(nn.Linear(16, 10), nn.GELU(), nn.Linear(10, 16))
        self.channels = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.places(x.transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(x)
        y: Tensor = self.head(x.mean(dim=1))
        return y


class PaddedShortcut(nn.Module):
    """Option A: subsample, and zeros for the new channels."""

    def __init__(self, by_cat: bool) -> None:
        super().__init__()
        self.stem, self.conv, self.head, self.by_cat = ConvBN(3, 8, 3), ConvBN(8, 12, 3, 2), nn.Linear(12, 4), by_cat

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y, s = self.conv(x), F.avg_pool2d(x, 1, 2)
        if self.by_cat:
            s = torch.cat([s, torch.zeros(s.size(0), y.size(1) - s.size(1), s.size(2), s.size(3)).to(s)], 1)
        else:
            s = F.pad(s, (0, 0, 0, 0, 2, 2))
        z: Tensor = self.head(F.relu(y + s).mean((2, 3)))
        return z


class Standardized(nn.Conv2d):
    """A convolution whose filters are standardised in the forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        w = w / (w.std(dim=(1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


def between(*middle: nn.Module, width: int = 8, head: Sequence[nn.Module] = ()) -> nn.Module:
    return nn.Sequential(ConvBN(3, 8, 3), *middle, *(head or (ConvBN(width, 6, 3), nn.Conv2d(6, 4, 1))))


OTHER = (
    Entry("map_attention", lambda: between(MapAttention(8)), merges=6),
    Entry("non_local", lambda: between(NonLocal(8, 4)), merges=18),
    Entry("vit", ViT, merges=32),
    Entry("siamese", Siamese, ((2, 3, 16, 16), (2, 3, 16, 16)), 26, True),
    Entry("dict_output", Heads, merges=8, keeps_class=True),
    Entry("audio", Audio, ((2, 1, 20),), 44, True),
    Entry("video", Video, ((2, 3, 4, 6, 6),), 14, True),
    Entry("temporal_shift", lambda: TemporalShift(4), ((8, 3, 8, 8),), 8),
    Entry("conv_lstm", ConvLSTM, ((2, 1, 16, 12),), 6, True),
    Entry("functional", Functional, merges=8, keeps_class=True),
    Entry("early_exit_not_taken", lambda: EarlyExit(1.0), merges=20, keeps_class=True),
    Entry("coordinates", CoordConv, merges=16, keeps_class=True),
    Entry("spatial_transformer", SpatialTransformer, merges=8, keeps_class=True),
    Entry("mixer", Mixer, merges=20, keeps_class=True),
    Entry("zeros_by_cat", lambda: PaddedShortcut(True), merges=8),
    Entry("zeros_by_pad", lambda: PaddedShortcut(False), merges=12),
    Entry("weight_norm", lambda: between(weight_norm(nn.Conv2d(8, 8, 3))), merges=6),
    Entry("spectral_norm", lambda: between(spectral_norm(nn.Conv2d(8, 8, 3))), merges=6),
    Entry("standardized", lambda: between(Standardized(8, 8, 3)), merges=6),
    Entry("instance_norm_style", lambda: between(nn.ReflectionPad2d(1), nn.Conv2d(8, 8, 3), nn.InstanceNorm2d(8), nn.Upsample(scale_factor=2), nn.ZeroPad2d(1)), merges=22),
    Entry("glu", lambda: between(nn.Conv2d(8, 12, 1), nn.GLU(1), width=6), merges=20),
    Entry("channel_shuffle", lambda: between(nn.Conv2d(8, 8, 1, groups=2), nn.ChannelShuffle(2), nn.Conv2d(8, 8, 1, groups=2)), merges=16),
    Entry("unfold", lambda: Classifier(nn.Unfold(2, stride=2), nn.Conv1d(32, 8, 1), nn.ReLU(), nn.Unflatten(2, (8, 8)), width=8), merges=16),
    Entry("local_response_norm", lambda: between(nn.LocalResponseNorm(3)), merges=6),
    Entry("channel_dropout_and_prelu", lambda: between(nn.Dropout2d(0.3), nn.PReLU(8), nn.AlphaDropout(0.2)), merges=14, keeps_class=True),
    Entry("transformer_layer", lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.Flatten(2), nn.TransformerEncoderLayer(10, 2, 16, batch_first=True), nn.Conv1d(8, 4, 1)), ((2, 3, 12),), 16),
    Entry("bilinear", lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.Softmax(1), nn.Linear(6, 3)), ((2, 5),), 8, True),
)  # fmt: skip
