"""Small networks, one or more per operator rule: the table behind the soundness tests.

Each sample is a stem, something in the middle, and a head that reads it; ``merges`` tells how many channels can be merged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Forward = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """Named layers and a forward function."""

    def __init__(self, forward: Forward, **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


@dataclass(frozen=True)
class Sample:
    """A network, its input and the number of channels that can be merged in it."""

    name: str
    build: Callable[[], nn.Module]
    merges: int
    shape: tuple[int, ...] = (2, 3, 8, 8)

    def __str__(self) -> str:
        return self.name


def conv(inputs: int, outputs: int, **options: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)  # type: ignore[arg-type]


def between(middle: Forward, *, head: int = 8, **layers: nn.Module | nn.Parameter) -> Callable[[], nn.Module]:
    """``stem (3 -> 8), middle, head (-> 4)``; the middle sees the stem's output."""
    return lambda: Net(lambda m, x: m.head(middle(m, m.stem(x))), stem=conv(3, 8), head=conv(head, 4), **layers)


def unary(name: str, function: Callable[[Tensor], Tensor], merges: int = 8) -> Sample:
    return Sample(name, between(lambda m, x: function(x)), merges)


def flattened(function: Callable[[Tensor], Tensor], features: int) -> Callable[[], nn.Module]:
    return lambda: Net(lambda m, x: m.head(function(m.stem(x))), stem=conv(3, 8), head=nn.Linear(features, 4))


class Shared(nn.Module):
    """One convolution called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice, self.head = conv(3, 8), conv(8, 8), conv(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.twice(self.twice(self.stem(x)).relu()))  # type: ignore[no-any-return]


class Functional(nn.Module):
    """Plain parameters and functional calls."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(8, 3, 3, 3))
        self.b = nn.Parameter(torch.randn(8))
        self.v = nn.Parameter(torch.randn(4, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, self.w, self.b, padding=1).relu(), self.v)


def two(parts: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    first, second = parts  # torch.fx follows an unpacking, but no loop over parts
    return first, second


def joined_parts(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([a.relu(), b.sigmoid()], 1)


def shuffled(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def grown(m: Net, x: Tensor) -> Tensor:
    """Iterates over the parts of a chunk, as plain symbolic tracing cannot."""
    parts = list(x.chunk(2, 1))
    parts.extend(m.a(parts[-1]) for _ in range(2))
    return torch.cat(parts, 1)


def padded_same(m: Net, x: Tensor) -> Tensor:
    """Pads only where the size asks for it, and shuffles so that the graph must be edited."""
    missing = x.shape[-1] % 3
    return m.a(shuffled(F.pad(x, (0, 3 - missing)) if missing > 0 else x, 2))


def by_data(x: Tensor) -> Tensor:
    """Branches on the data, and holds a size: no graph can be had to edit it."""
    return shuffled(x, 2) if float(x.sum()) > 1e9 else torch.cat([x[:, :4].relu(), x[:, 4:]], 1)


class Permuted(nn.Module):
    """Channels in the order of an index buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(3, 8), conv(8, 4)
        self.register_buffer("order", torch.tensor([3, 1, 2, 0, 7, 5, 6, 4]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x).index_select(1, self.order))  # type: ignore[no-any-return]


def scale(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.rand(shape) + 0.5)


SAMPLES = (
    Sample("conv", between(lambda m, x: x), 8),
    Sample("conv_dilated_strided", between(lambda m, x: m.a(x), a=nn.Conv2d(8, 8, 3, stride=2, dilation=2, padding=2)), 16),
    Sample("functional", Functional, 8),
    Sample("shared_module", Shared, 8),
    Sample("depthwise", between(lambda m, x: m.a(x), a=conv(8, 8, groups=8)), 8),
    Sample("depthwise_multiplier", between(lambda m, x: m.a(x), a=conv(8, 16, groups=8), head=16), 8),
    Sample("conv1d", lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Conv1d(8, 4, 3)), 8, (2, 3, 9)),
    Sample("conv3d", lambda: nn.Sequential(nn.Conv3d(3, 8, 3), nn.ReLU(), nn.Conv3d(8, 4, 3)), 8, (2, 3, 7, 7, 7)),
    Sample("linear", lambda: nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 4)), 8, (2, 5)),
    Sample("batch_norm", between(lambda m, x: m.a(x), a=nn.BatchNorm2d(8)), 8),
    Sample("batch_norm_plain", between(lambda m, x: m.a(x), a=nn.BatchNorm2d(8, affine=False)), 8),
    Sample("batch_norm_aten", between(lambda m, x: torch.batch_norm(x, m.w, m.w, m.w, m.v, False, 0.1, 1e-5, False), w=scale(8), v=scale(8)), 8),
    Sample("instance_norm", between(lambda m, x: m.a(x), a=nn.InstanceNorm2d(8, affine=True)), 8),
    Sample("relu", between(lambda m, x: m.a(x), a=nn.ReLU(inplace=True)), 8),
    Sample("prelu", between(lambda m, x: m.a(x), a=nn.PReLU(8)), 8),
    Sample("prelu_one", between(lambda m, x: m.a(x), a=nn.PReLU()), 8),
    Sample("dropout", between(lambda m, x: m.a(x), a=nn.Dropout(0.5)), 8),
    unary("dropout_always", lambda x: F.dropout(x, 0.5), 0),
    unary("sigmoid_gate_by_itself", lambda x: x * torch.sigmoid(x)),
    Sample("residual", between(lambda m, x: x + m.a(x), a=conv(8, 8)), 8),
    Sample("multiply", between(lambda m, x: m.a(x) * x, a=conv(8, 8)), 8),
    Sample("scalar", between(lambda m, x: 2 * x - 1), 8),
    Sample("layer_scale", between(lambda m, x: x * m.g, g=scale(8, 1, 1)), 8),
    Sample("spatial_gate", between(lambda m, x: x * torch.sigmoid(m.a(x)), a=conv(8, 1)), 8),
    Sample("spatial_gate_expanded", between(lambda m, x: x * torch.sigmoid(m.a(x)).expand_as(x), a=conv(8, 1)), 8),
    Sample("squeeze_excite", between(lambda m, x: x * torch.sigmoid(m.b(m.a(x.mean((2, 3), keepdim=True)).relu())), a=nn.Conv2d(8, 4, 1), b=nn.Conv2d(4, 8, 1)), 12),
    Sample("concat", between(lambda m, x: torch.cat([x, m.a(x)], 1), a=conv(8, 6), head=14), 14),
    Sample("concat_of_concats", between(lambda m, x: torch.cat([torch.cat([x, m.a(x)], 1), x.relu()], 1), a=conv(8, 6), head=22), 14),
    Sample("stack", between(lambda m, x: torch.stack([x, m.a(x)], 1).flatten(1, 2), a=conv(8, 8), head=16), 0),
    Sample("half_activated", between(lambda m, x: torch.cat([x[:, :4].relu(), x[:, 4:]], 1)), 8),
    Sample("half_flipped", between(lambda m, x: torch.cat([x[:, :4].flip(3), x[:, 4:]], 1)), 8),
    Sample("rolled_onto_itself", between(lambda m, x: x + x.roll(1, 1)), 0),
    Sample("three_cycles", between(lambda m, x: x + 2 * torch.cat([x[:, 1:3], x[:, :1], x[:, 5:6], x[:, 3:5], x[:, 6:]], 1)), 2),
    Sample("split", between(lambda m, x: joined_parts(*two(x.split([2, 6], 1)))), 8),
    Sample("chunk", between(lambda m, x: joined_parts(*two(x.chunk(2, 1)))), 8),
    Sample("chunk_swapped", between(lambda m, x: torch.cat(two(x.chunk(2, 1))[::-1], 1)), 8),
    Sample("split_space", between(lambda m, x: torch.cat([p.relu() for p in x.split([2, 6], 2)], 2)), 8),
    Sample("unbind_space", between(lambda m, x: torch.stack([p.relu() for p in x.unbind(3)], 3)), 8),
    Sample("flatten", flattened(lambda x: torch.flatten(x, 1), 512), 8),
    Sample("flatten_channels_last", flattened(lambda x: x.permute(0, 2, 3, 1).flatten(1), 512), 8),
    Sample("view_literal", flattened(lambda x: x.view(-1, 512), 512), 8),
    Sample("reshape_by_shape", flattened(lambda x: x.reshape(x.size(0), -1), 512), 8),
    Sample("linear_to_map", lambda: Net(lambda m, x: m.head(m.a(x).view(x.shape[0], 6, 4, 4)), a=nn.Linear(5, 96), head=conv(6, 4)), 6, (2, 5)),
    Sample("squeeze", flattened(lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(3).squeeze(2), 8), 8),
    Sample("select", flattened(lambda x: x[:, :, 0, 0], 8), 8),
    Sample("select_function", flattened(lambda x: x.select(2, 0).narrow(2, 1, 1).flatten(1), 8), 8),
    Sample("subsampled_padded", between(lambda m, x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)) + m.a(x), a=conv(8, 12, stride=2), head=12), 12),
    Sample("padded_space", between(lambda m, x: F.pad(x, (1, 1, 1, 1), mode="reflect")), 8),
    Sample("max_pool", between(lambda m, x: F.max_pool2d(x, 2)), 8),
    Sample("avg_pool", between(lambda m, x: F.avg_pool2d(x, 2)), 8),
    Sample("interpolate", between(lambda m, x: F.interpolate(x, scale_factor=2.0)), 8),
    Sample("mean", flattened(lambda x: x.mean((2, 3)), 8), 8),
    Sample("mean_over_channels", between(lambda m, x: x * x.mean(1, keepdim=True)), 0),
    Sample("largest", flattened(lambda x: x.flatten(2).max(2).values, 8), 8),
    Sample("softmax_over_space", between(lambda m, x: x.softmax(3)), 8),
    Sample("softmax_over_channels", between(lambda m, x: x.softmax(1)), 0),
    Sample("roll_space", between(lambda m, x: x.roll(1, 3)), 8),
    Sample("transpose", between(lambda m, x: x.transpose(2, 3)), 8),
    Sample("roll_channels", between(lambda m, x: x.roll(3, 1)), 8),
    Sample("index_select", Permuted, 8),
    Sample("every_other", between(lambda m, x: torch.cat([x[:, ::2].relu(), x[:, 1::2]], 1)), 8),
    Sample("channel_shuffle", between(lambda m, x: shuffled(x, 4)), 8),
    Sample("channel_shuffle_of_parts", between(lambda m, x: shuffled(torch.cat([x, m.a(x)], 1), 2), a=conv(8, 8), head=16), 16),
    Sample("shuffled_and_activated_between", between(lambda m, x: x.view(2, 4, 2, 8, 8).relu().transpose(1, 2).reshape(x.shape)), 0),
    Sample("list_of_chunks", between(grown, a=conv(4, 4), head=16), 8),
    Sample("padded_where_needed", between(padded_same, a=conv(8, 6), head=6), 14),
    Sample("literal_in_a_branch_on_the_data", between(lambda m, x: by_data(x)), 0),
    Sample("one_channel_alone", between(lambda m, x: x * x[:, 3:4].sigmoid()), 7),
    Sample("input_concat", lambda: Net(lambda m, x: m.head(torch.cat([x, m.stem(x)], 1)), stem=conv(3, 8), head=conv(11, 4)), 8),
    Sample("input_added", lambda: Net(lambda m, x: m.head(x + m.stem(x)), stem=conv(3, 3), head=conv(3, 4)), 0),
    Sample("grouped", between(lambda m, x: m.a(x), a=conv(8, 8, groups=2)), 8),
    Sample("grouped_wider", between(lambda m, x: m.a(x).relu(), a=conv(8, 24, groups=4), head=24), 8),
    Sample("grouped_residual", between(lambda m, x: x + m.b(m.a(x).relu()), a=conv(8, 12, groups=2), b=conv(12, 8, groups=4)), 5),
    Sample("layer_norm", lambda: nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 4)), 8, (2, 5)),
    Sample("layer_norm_of_seven", lambda: nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 4)), 7, (2, 5)),
    Sample("layer_norm_bare", lambda: nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8, elementwise_affine=False), nn.Linear(8, 4)), 8, (2, 5)),
    Sample("layer_norm_with_inputs", lambda: Net(lambda m, x: m.b(m.n(torch.cat([x, m.a(x)], 1))), a=nn.Linear(5, 8), n=nn.LayerNorm(13), b=nn.Linear(13, 4)), 0, (2, 5)),
    Sample("layer_norm_of_two_layers", lambda: Net(lambda m, x: m.b(m.n(torch.cat([m.c(x).relu(), m.a(x)], 1))), a=nn.Linear(5, 8), c=nn.Linear(5, 12), n=nn.LayerNorm(20), b=nn.Linear(20, 4)), 20, (2, 5)),
    Sample("layer_norm_of_odd_pair", lambda: Net(lambda m, x: m.b(m.n(torch.cat([m.c(x).relu(), m.a(x)], 1))), a=nn.Linear(5, 8), c=nn.Linear(5, 9), n=nn.LayerNorm(17), b=nn.Linear(17, 4)), 0, (2, 5)),
    Sample("layer_norm_channels_last", between(lambda m, x: m.n(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), n=nn.LayerNorm(8)), 8),
    Sample("layer_norm_over_maps", between(lambda m, x: m.n(x), n=nn.LayerNorm((8, 8, 8))), 8),
    Sample("layer_norm_over_space", between(lambda m, x: m.n(x), n=nn.LayerNorm(8)), 8),
    Sample("layer_norm_functional", between(lambda m, x: F.layer_norm(x, (8, 8, 8)) + x), 8),
    Sample("rms_norm", lambda: nn.Sequential(nn.Linear(5, 8), nn.RMSNorm(8), nn.Linear(8, 4)), 8, (2, 5)),
    Sample("group_norm", between(lambda m, x: m.n(x), n=nn.GroupNorm(2, 8)), 8),
    Sample("group_norm_bare", between(lambda m, x: m.n(x), n=nn.GroupNorm(2, 8, affine=False)), 8),
    Sample("group_norm_of_each", between(lambda m, x: m.n(x), n=nn.GroupNorm(8, 8)), 8),
    Sample("group_norm_of_each_functional", between(lambda m, x: F.group_norm(x, 8)), 8),
    Sample("group_norm_of_all", between(lambda m, x: m.n(x), n=nn.GroupNorm(1, 8)), 8),
    Sample("group_norm_residual", between(lambda m, x: x + m.n(m.a(x)), a=conv(8, 8), n=nn.GroupNorm(4, 8)), 8),
    Sample("output_is_stem", lambda: nn.Sequential(conv(3, 8), nn.ReLU()), 0),
)  # fmt: skip
