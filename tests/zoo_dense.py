"""The zoo, part one: segmentation, detection and other networks that give maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo_common import ConvBN, Entry


class DoubleConv(nn.Sequential):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(ConvBN(inputs, outputs, 3), ConvBN(outputs, outputs, 3))


class SegNet(nn.Module):
    """The decoder puts values back where the encoder's pooling found its maxima."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep, self.up = ConvBN(3, 8, 3), ConvBN(8, 12, 3), ConvBN(12, 8, 3)
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
        self.head = ConvBN(8, 8, 3)
        self.classes = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down(x)
        half, places = self.pool(first)
        deep = self.deep(half)
        quarter, deeper = self.pool(deep)
        up = self.up(self.unpool(quarter, deeper, output_size=deep.shape))
        y: Tensor = self.classes(self.head(self.unpool(up, places, output_size=first.shape)))
        return y


class UNet(nn.Module):
    """Encoder and decoder with concat skips; an upsampled map is padded to the size of its skip."""

    def __init__(self, bilinear: bool) -> None:
        super().__init__()
        self.enter = DoubleConv(3, 6)
        self.down = nn.ModuleList([DoubleConv(6, 8), DoubleConv(8, 10)])
        self.pool = nn.MaxPool2d(2)
        if bilinear:
            self.up: nn.ModuleList = nn.ModuleList(
                [nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True) for _ in range(2)]
            )
            self.join = nn.ModuleList([DoubleConv(18, 8), DoubleConv(14, 6)])
        else:
            self.up = nn.ModuleList([nn.ConvTranspose2d(10, 5, 2, stride=2), nn.ConvTranspose2d(8, 4, 2, stride=2)])
            self.join = nn.ModuleList([DoubleConv(13, 8), DoubleConv(10, 6)])
        self.out = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = [self.enter(x)]
        for down in self.down:
            skips.append(down(self.pool(skips[-1])))
        x = skips.pop()
        for up, join in zip(self.up, self.join, strict=True):
            skip = skips.pop()
            x = up(x)
            high, wide = skip.size(2) - x.size(2), skip.size(3) - x.size(3)
            x = F.pad(x, [wide // 2, wide - wide // 2, high // 2, high - high // 2])
            x = join(torch.cat([skip, x], dim=1))
        y: Tensor = self.out(x)
        return y


class Bottleneck(nn.Module):
    def __init__(self, width: int, shortcut: bool = True) -> None:
        super().__init__()
        self.first, self.second, self.shortcut = ConvBN(width, width, 3), ConvBN(width, width, 3), shortcut

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x))
        return x + y if self.shortcut else y


class C2f(nn.Module):
    """Split in two, run bottlenecks from the second half, keep every stage, concat."""

    def __init__(self, inputs: int, outputs: int, repeats: int, shortcut: bool) -> None:
        super().__init__()
        self.half = outputs // 2
        self.enter = ConvBN(inputs, 2 * self.half)
        self.leave = ConvBN((2 + repeats) * self.half, outputs)
        self.blocks = nn.ModuleList(Bottleneck(self.half, shortcut) for _ in range(repeats))

    def forward(self, x: Tensor) -> Tensor:
        stages = list(self.enter(x).chunk(2, 1))
        stages.extend(block(stages[-1]) for block in self.blocks)
        y: Tensor = self.leave(torch.cat(stages, 1))
        return y


class SPPF(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter, self.leave = ConvBN(width, width // 2), ConvBN(width // 2 * 4, width)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        one = self.pool(x)
        two = self.pool(one)
        y: Tensor = self.leave(torch.cat((x, one, two, self.pool(two)), 1))
        return y


class Detect(nn.Module):
    """Box and class branches on every scale; in evaluation the flattened maps are joined, too."""

    def __init__(self, widths: tuple[int, ...], classes: int = 3, bins: int = 4, joined: bool = False) -> None:
        super().__init__()
        self.bins, self.classes, self.joined = bins, classes, joined
        self.boxes = nn.ModuleList(nn.Sequential(ConvBN(w, 6, 3), nn.Conv2d(6, 4 * bins, 1)) for w in widths)
        self.labels = nn.ModuleList(nn.Sequential(ConvBN(w, 8, 3), nn.Conv2d(8, classes, 1)) for w in widths)

    def forward(self, maps: list[Tensor]) -> list[Tensor] | Tensor:
        outputs = []
        for i in range(len(maps)):
            outputs.append(torch.cat((self.boxes[i](maps[i]), self.labels[i](maps[i])), 1))
        if not self.joined:
            return outputs
        batch, count = maps[0].shape[0], 4 * self.bins + self.classes
        flat = torch.cat([o.view(batch, count, -1) for o in outputs], 2)
        box, label = flat.split((4 * self.bins, self.classes), 1)
        places = torch.arange(self.bins, dtype=box.dtype, device=box.device).view(1, self.bins, 1, 1)
        box = (box.view(batch, 4, self.bins, -1).transpose(2, 1).softmax(1) * places).sum(1)
        return torch.cat((box, label.sigmoid()), 1)


class YoloC2f(nn.Module):
    def __init__(self, joined: bool = False) -> None:
        super().__init__()
        self.stem = ConvBN(3, 8, 3, 2)
        self.stage1 = nn.Sequential(ConvBN(8, 12, 3, 2), C2f(12, 12, 1, True))
        self.stage2 = nn.Sequential(ConvBN(12, 16, 3, 2), C2f(16, 16, 2, True))
        self.stage3 = nn.Sequential(ConvBN(16, 20, 3, 2), C2f(20, 20, 1, True), SPPF(20))
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.top, self.middle = C2f(36, 16, 1, False), C2f(28, 12, 1, False)
        self.down, self.bottom = ConvBN(12, 12, 3, 2), C2f(28, 16, 1, False)
        self.detect = Detect((12, 16), joined=joined)

    def forward(self, x: Tensor) -> list[Tensor] | Tensor:
        c1 = self.stage1(self.stem(x))
        c2 = self.stage2(c1)
        c3 = self.stage3(c2)
        p2 = self.top(torch.cat([self.up(c3), c2], 1))
        p1 = self.middle(torch.cat([self.up(p2), c1], 1))
        n2 = self.bottom(torch.cat([self.down(p1), p2], 1))
        y: list[Tensor] | Tensor = self.detect([p1, n2])
        return y


class CSP(nn.Module):
    """Two ways through, one with bottlenecks; joined and mixed."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.left, self.right = ConvBN(inputs, outputs // 2), ConvBN(inputs, outputs // 2)
        self.leave, self.blocks = ConvBN(outputs, outputs), nn.Sequential(*(Bottleneck(outputs // 2) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.leave(torch.cat((self.blocks(self.left(x)), self.right(x)), dim=1))
        return y


class FocusYolo(nn.Module):
    """Space to depth by slices, CSP blocks, and anchors viewed out of a map."""

    def __init__(self, anchors: int = 3, classes: int = 2) -> None:
        super().__init__()
        self.anchors, self.outputs = anchors, classes + 5
        self.stem, self.mid = ConvBN(3, 6, 3), ConvBN(24, 8, 3)
        self.body = nn.Sequential(CSP(8, 8), ConvBN(8, 12, 3, 2), CSP(12, 12))
        self.head = nn.Conv2d(12, anchors * self.outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)
        y = self.head(self.body(self.mid(x)))
        b, _, h, w = y.shape
        z: Tensor = y.view(b, self.anchors, self.outputs, h, w).permute(0, 1, 3, 4, 2).contiguous()
        return z


class ASPP(nn.Module):
    """Parallel dilated convolutions and an image-level branch, as in DeepLab."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(ConvBN(3, 8, 3, 2), ConvBN(8, 12, 3))
        self.low = ConvBN(8, 4)
        self.branches = nn.ModuleList([ConvBN(12, 6), *(ConvBN(12, 6, 3, dilation=d) for d in (2, 4))])
        self.image = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvBN(12, 6))
        self.project = nn.Sequential(ConvBN(24, 8), nn.Dropout(0.5))
        self.decoder = nn.Sequential(ConvBN(12, 8, 3), nn.Conv2d(8, 3, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        size = x.shape[-2:]
        low = self.backbone[0](x)
        y = self.backbone[1](low)
        parts = [branch(y) for branch in self.branches]
        parts.append(F.interpolate(self.image(y), size=y.shape[-2:], mode="bilinear", align_corners=False))
        y = self.project(torch.cat(parts, dim=1))
        y = self.decoder(torch.cat([F.interpolate(y, size=low.shape[2:]), self.low(low)], 1))
        return {"out": F.interpolate(y, size=size, mode="bilinear", align_corners=False)}


class FPN(nn.Module):
    """Top-down pathway and one head shared by all levels, its outputs flattened and joined as in RetinaNet."""

    def __init__(self, joined: bool = True) -> None:
        super().__init__()
        self.joined = joined
        self.stages = nn.ModuleList([ConvBN(3, 6, 3, 2), ConvBN(6, 8, 3, 2), ConvBN(8, 12, 3, 2)])
        self.lateral = nn.ModuleList(nn.Conv2d(w, 8, 1) for w in (6, 8, 12))
        self.smooth = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.tower = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.score = nn.Conv2d(8, 2 * 3, 3, padding=1)

    def forward(self, x: Tensor) -> list[Tensor] | Tensor:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        levels = [conv(m) for conv, m in zip(self.lateral, maps, strict=True)]
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + F.interpolate(levels[i], size=levels[i - 1].shape[-2:], mode="nearest")
        scores = [self.score(self.tower(conv(level))) for conv, level in zip(self.smooth, levels, strict=True)]
        if not self.joined:
            return scores
        flat = []
        for s in scores:
            n, _, h, w = s.shape
            flat.append(s.view(n, -1, 3, h, w).permute(0, 3, 4, 1, 2).reshape(n, -1, 3))
        return torch.cat(flat, dim=1)


class HRNet(nn.Module):
    """Two resolutions that exchange sums, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBN(3, 8, 3)
        self.enter = nn.ModuleList([ConvBN(8, 6, 3), ConvBN(8, 10, 3, 2)])
        self.blocks = nn.ModuleList(nn.ModuleList([Bottleneck(6), Bottleneck(10)]) for _ in range(2))
        self.fuse = nn.ModuleList(
            nn.ModuleDict(
                {
                    "up": nn.Sequential(ConvBN(10, 6, act=False), nn.Upsample(scale_factor=2.0)),
                    "down": ConvBN(6, 10, 3, 2, act=False),
                }
            )
            for _ in range(2)
        )
        self.head = nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        branches = [enter(x) for enter in self.enter]
        for blocks, fuse in zip(self.blocks, self.fuse, strict=True):
            high, low = (block(b) for block, b in zip(blocks, branches, strict=True))
            branches = [F.relu(high + fuse["up"](low)), F.relu(low + fuse["down"](high))]
        low = F.interpolate(branches[1], size=branches[0].shape[2:], mode="bilinear")
        y: Tensor = self.head(torch.cat([branches[0], low], 1))
        return y


class AutoEncoder(nn.Module):
    """Flatten to a code and back through a literal view and transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(True), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(True))
        self.code, self.back = nn.Linear(8 * 4 * 4, 10), nn.Linear(10, 8 * 4 * 4)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(8, 6, 3, 2, 1, output_padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(True),
            nn.ConvTranspose2d(6, 3, 4, 2, 1),
            nn.Tanh(),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = self.code(self.encoder(x).view(x.size(0), -1))
        y = self.decoder(F.relu(self.back(code)).view(-1, 8, 4, 4))
        return y, code


class SubPixel(nn.Module):
    """Super-resolution: long skip over residual blocks, pixel shuffles, and the enlarged input added at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.PReLU(8), nn.Conv2d(8, 8, 3, padding=1))
                for _ in range(2)
            )
        )
        self.up = nn.Sequential(nn.Conv2d(8, 24, 3, padding=1), nn.PixelShuffle(2), nn.PReLU())
        self.tail = nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.head(x)
        y = first
        for block in self.body:
            y = y + 0.1 * block(y)
        z: Tensor = self.tail(self.up(y + first)) + F.interpolate(x, scale_factor=2, mode="bicubic")
        return z


MAPS = ((2, 3, 32, 32),)
DENSE = (
    Entry("unet_bilinear", lambda: UNet(True), ((2, 3, 18, 21),), 76),
    Entry("unet_transposed", lambda: UNet(False), ((2, 3, 18, 21),), 85),
    Entry("segnet", SegNet, merges=28, keeps_class=True),
    Entry("yolo_c2f", YoloC2f, MAPS, 386),
    Entry("yolo_c2f_joined", lambda: YoloC2f(joined=True), MAPS, 386),
    Entry("yolo_focus", FocusYolo, MAPS, 86, keeps_class=True),
    Entry("aspp", ASPP, MAPS, 64, keeps_class=True),
    Entry("fpn_retina", FPN, MAPS, 58, keeps_class=True),
    Entry("fpn_list", lambda: FPN(joined=False), MAPS, 58, keeps_class=True),
    Entry("hrnet", HRNet, ((2, 3, 16, 16),), 56, keeps_class=True),
    Entry("autoencoder", AutoEncoder, ((2, 3, 16, 16),), 20),
    Entry("sub_pixel", SubPixel, ((2, 3, 8, 8),), 30, keeps_class=True),
)
