"""More operations for random programs: norms over channels, attention, products, unusual convolutions, rearrangements.

Importing this module adds them to the table of :mod:`networks`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from networks import WIDTHS, Choice, Interpreter, fitted, head, op, two
from torch import Tensor, nn

LARGEST = 12  # pixels on a side, above which nothing is enlarged any further


# ---------------------------------------------------------------------------------------- convolutions


@op
def conv_odd(m: Interpreter, c: Choice, x: Tensor) -> Any:
    """Kernels that are no squares, paddings that are no zeros, sizes given by a word."""
    (_, width, *sides), out = m.shape(x), c(6, 4, 8)
    kernel, mode = c((1, 3), (3, 1), (3, 3)), c("zeros", "reflect", "circular", "replicate")
    mode = mode if min(sides) > 1 else "zeros"  # a single pixel has nothing to reflect
    return m.layer(lambda: nn.Conv2d(width, out, kernel, padding="same", padding_mode=mode))(x)


@op
def conv1d(m: Interpreter, c: Choice, x: Tensor) -> Any:
    _, width, height, wide = m.shape(x)
    out = c(*WIDTHS)
    return m.layer(lambda: nn.Conv1d(width, out, 3, padding=1))(x.flatten(2)).unflatten(2, (height, wide))


@op
def conv3d(m: Interpreter, c: Choice, x: Tensor) -> Any:
    width, out, groups = m.shape(x)[1], c(4, 6), c(1, 2)
    groups = groups if width % groups == 0 else 1
    layer = m.layer(lambda: nn.Conv3d(width, out, (1, 3, 3), padding=(0, 1, 1), groups=groups))
    return layer(x.unsqueeze(2)).squeeze(2)


@op
def transposed(m: Interpreter, c: Choice, x: Tensor) -> Any:
    _, width, height, wide = m.shape(x)
    kind, stride, out = c("dense", "grouped", "depthwise"), c(2, 1), c(6, 4)
    stride = 1 if max(height, wide) > LARGEST else stride
    groups = {"dense": 1, "grouped": 2 if width % 2 == 0 else 1, "depthwise": width}[kind]
    out = width * c(1, 2) if kind == "depthwise" else out
    return m.layer(lambda: nn.ConvTranspose2d(width, out, 3, stride, padding=1, groups=groups))(x)


@op
def deformable(m: Interpreter, c: Choice, x: Tensor) -> Any:
    width, out = m.shape(x)[1], c(6, 4)
    offset = m.layer(lambda: nn.Conv2d(width, 18, 3, padding=1), "offset")(x)
    return m.layer(lambda: torchvision.ops.DeformConv2d(width, out, 3, padding=1))(x, offset)


@op
def standardized_weight(m: Interpreter, c: Choice, x: Tensor) -> Any:
    width = m.shape(x)[1]
    w = m.weight(lambda: torch.rand(6, width, 1, 1) + 0.5)
    return F.conv2d(x, w / w.norm(2, 1, keepdim=True))


@op
def unfolded(m: Interpreter, c: Choice, x: Tensor) -> Any:
    """im2col and back, or a product with its columns."""
    _, width, height, wide = m.shape(x)
    columns = F.unfold(x, 3, padding=1)
    if c(True, False):
        return F.fold(columns.relu(), (height, wide), 3, padding=1)
    w = m.weight(lambda: torch.randn(5, width * 9) * 0.2)
    return (w @ columns).unflatten(2, (height, wide))


# ---------------------------------------------------------------------------------------- norms


@op
def group_norm(m: Interpreter, c: Choice, x: Tensor) -> Any:
    width = m.shape(x)[1]
    groups, affine = c(2, 1, width), c(True, False)
    groups = groups if width % groups == 0 else 1
    return m.layer(lambda: nn.GroupNorm(groups, width, affine=affine))(F.pad(x, (0, 1, 1, 0)))


@op
def layer_norm(m: Interpreter, c: Choice, x: Tensor) -> Any:
    kind, affine = c("last", "maps", "space", "rms"), c(True, False)
    _, width, height, wide = m.shape(x)
    if kind == "rms":
        layer = m.layer(lambda: nn.RMSNorm(width, eps=1e-5, elementwise_affine=affine))
        return layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    sizes = {"last": (width,), "maps": (width, height, wide), "space": (wide,)}[kind]
    layer = m.layer(lambda: nn.LayerNorm(sizes, eps=1e-2, elementwise_affine=affine))
    return layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if kind == "last" else layer(x)


@op
def standardized(m: Interpreter, c: Choice, x: Tensor) -> Any:
    dims = c((2, 3), (1, 2, 3))
    deviation, mean = torch.std_mean(F.pad(x, (1, 0, 0, 0)), dims, keepdim=True)
    return (x - mean) / (deviation + 0.1)


# ---------------------------------------------------------------------------------------- products


@op
def product(m: Interpreter, c: Choice, x: Tensor) -> Any:
    """A 1x1 convolution by another name."""
    _, width, height, wide = m.shape(x)
    kind = c("einsum", "matmul", "left", "addmm", "tensordot")
    w = m.weight(lambda: torch.randn(5, width) * 0.5)
    if kind == "einsum":
        return torch.einsum("bchw,oc->bohw", x, w)
    if kind == "left":
        return (w @ x.flatten(2)).unflatten(2, (height, wide))
    if kind == "tensordot":
        return torch.tensordot(x, w, ([1], [1])).permute(0, 3, 1, 2)
    last = x.permute(0, 2, 3, 1)
    if kind == "matmul":
        return (last @ w.t()).permute(0, 3, 1, 2)
    bias = m.weight(lambda: torch.randn(5), "bias")
    return torch.addmm(bias, last.reshape(-1, width), w.t()).view(2, height, wide, 5).permute(0, 3, 1, 2)


@op
def over_places(m: Interpreter, c: Choice, x: Tensor) -> Any:
    """A linear layer along an axis of the image."""
    wide = m.shape(x)[3]
    return m.layer(lambda: nn.Linear(wide, 4))(x)


@op
def attention(m: Interpreter, c: Choice, x: Tensor) -> Any:
    """Two heads over the pixels: written out, by torch's function, or by torch's module."""
    _, width, height, wide = m.shape(x)
    kind = c("function", "written", "module", "joint")
    tokens = x.flatten(2).transpose(1, 2)
    if kind == "module":
        tokens = m.layer(lambda: nn.Linear(width, 8), "in")(tokens)
        found = m.layer(lambda: nn.MultiheadAttention(8, 2, batch_first=True))(tokens, tokens, tokens)[0]
    elif kind == "joint":
        qkv = m.layer(lambda: nn.Linear(width, 24), "qkv")(tokens).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2]).transpose(1, 2).flatten(2)
    else:
        q, k, v = (
            m.layer(lambda: nn.Linear(width, 8), name)(tokens).unflatten(2, (2, 4)).transpose(1, 2) for name in "qkv"
        )
        written = kind == "written"
        found = (q @ k.transpose(2, 3) * 0.5).softmax(-1) @ v if written else F.scaled_dot_product_attention(q, k, v)
        found = found.transpose(1, 2).flatten(2)
    out = m.layer(lambda: nn.Linear(8, 6), "out")(found)
    return out.transpose(1, 2).unflatten(2, (height, wide))


@op
def non_local(m: Interpreter, c: Choice, x: Tensor) -> Any:
    width = m.shape(x)[1]
    q = m.layer(lambda: nn.Conv2d(width, 4, 1), "q")(x).flatten(2)
    v = m.layer(lambda: nn.Conv2d(width, width, 1), "v")(x).flatten(2)
    return x + (v @ (q.transpose(1, 2) @ q).softmax(c(1, 2))).view_as(x)


@two
def selective(m: Interpreter, c: Choice, a: Tensor, b: Tensor) -> Any:
    """Two versions of every channel, weighted by a softmax over the versions."""
    width = m.shape(a)[1]
    both = torch.stack([a, fitted(m, b, a)], 1)
    pooled = both.sum(1).mean((2, 3))
    gates = torch.stack([m.layer(lambda: nn.Linear(width, width), name)(pooled) for name in "ab"], 1).softmax(1)
    return (both * gates[..., None, None]).sum(1)


# ---------------------------------------------------------------------------------------- rearrangements


@op
def glu(m: Interpreter, c: Choice, x: Tensor) -> Any:
    return F.glu(x, 1) if m.shape(x)[1] % 2 == 0 else x.tanh()


@op
def pixel_shuffle(m: Interpreter, c: Choice, x: Tensor) -> Any:
    _, width, height, wide = m.shape(x)
    if c(True, False) and max(height, wide) <= LARGEST:
        return F.pixel_shuffle(m.layer(lambda: nn.Conv2d(width, 12, 1))(x), 2)
    return F.pixel_unshuffle(F.adaptive_avg_pool2d(x, 4), 2)


@op
def channel_shuffle(m: Interpreter, c: Choice, x: Tensor) -> Any:
    width = m.shape(x)[1]
    return F.channel_shuffle(x, next(g for g in (2, 3, 1) if width % g == 0))


@op
def repeat(m: Interpreter, c: Choice, x: Tensor) -> Any:
    if m.shape(x)[1] > 24:
        return x.sin()
    return c(
        lambda: x.repeat(1, 2, 1, 1),
        lambda: x.repeat_interleave(2, 1),
        lambda: x.tile(2, 1, 1),
        lambda: x.repeat(1, 1, 2, 1),
    )()


@op
def picked_by_buffer(m: Interpreter, c: Choice, x: Tensor) -> Any:
    name, width = f"order_{m.key}", m.shape(x)[1]
    if m.building:
        m.register_buffer(name, torch.randperm(width, generator=torch.Generator().manual_seed(c.n)))
    return x.index_select(1, getattr(m, name))


@op
def unbound(m: Interpreter, c: Choice, x: Tensor) -> Any:
    return torch.stack([part.relu() for part in x.unbind(3)], c(3, 2))


@op
def hstacked(m: Interpreter, c: Choice, x: Tensor) -> Any:
    return torch.hstack([x, x.sigmoid()]) if m.shape(x)[1] <= 24 else torch.vstack([x[:1], x[1:].relu()])


@op
def turned(m: Interpreter, c: Choice, x: Tensor) -> Any:
    size = min(3, m.shape(x)[2])
    return c(lambda: torch.rot90(x, 1, (2, 3)), lambda: x.tril(), lambda: x.unfold(2, size, 1).mean(-1))()


@op
def written(m: Interpreter, c: Choice, x: Tensor) -> Any:
    y = torch.zeros_like(x)
    y[:, :, ::2] = x[:, :, ::2].relu()
    if c(False, True):
        y[..., 0] = x[..., -1]
    return y


@op
def gathered(m: Interpreter, c: Choice, x: Tensor) -> Any:
    few = min(2, m.shape(x)[3])
    return c(
        lambda: x.gather(3, x.argsort(3)),
        lambda: torch.zeros_like(x).scatter(3, x.argsort(3), x),
        lambda: x + x.max(3, keepdim=True)[0],
        lambda: x.topk(few, 3)[0],
    )()


@op
def unpooled(m: Interpreter, c: Choice, x: Tensor) -> Any:
    """The largest of each square, back where it stood."""
    sides = m.shape(x)[2:]
    square = min(2, *sides)
    largest, places = F.max_pool2d(x, square, return_indices=True)
    y = c(lambda: largest, lambda: largest.sigmoid(), lambda: m.layer(nn.ReLU)(largest))()
    return F.max_unpool2d(y, places, square, output_size=sides)


@op
def sampled(m: Interpreter, c: Choice, x: Tensor) -> Any:
    """A spatial transformer."""
    width = m.shape(x)[1]
    theta = m.layer(lambda: nn.Linear(width, 6))(x.mean((2, 3))).unflatten(1, (2, 3))
    return F.grid_sample(x, F.affine_grid(theta, [2, 1, 5, 5], align_corners=False), align_corners=False)


@op
def dropped(m: Interpreter, c: Choice, x: Tensor) -> Any:
    return m.layer(lambda: c(nn.Dropout, nn.Dropout2d, nn.Identity)())(x)


@op
def largest_channel(m: Interpreter, c: Choice, x: Tensor) -> Any:
    return c(
        lambda: x * x.amax(1, keepdim=True),
        lambda: x * x.mean(1, keepdim=True).expand_as(x),
        lambda: x - x.mean(),
        lambda: x * x.sum(1, keepdim=True),
    )()


# ---------------------------------------------------------------------------------------- heads


@head
def each_place(m: Interpreter, c: Choice, x: Tensor) -> Any:
    """Scores for every pixel."""
    width = m.shape(x)[1]
    return m.layer(lambda: nn.Linear(width, 3))(x.flatten(2).transpose(1, 2))
