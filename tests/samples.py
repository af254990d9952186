"""Small networks, one or more per operator rule: the table behind the soundness tests.

Each sample is a stem, something in the middle, and a head that reads it; ``merges`` tells how many channels can be merged.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

Forward = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """Copies of named layers, and a forward function: what ties one network of a sample leaves the next as it was."""

    def __init__(self, forward: Forward, **layers: nn.Module | Tensor) -> None:
        super().__init__()
        for name, layer in copy.deepcopy(layers).items():
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


def normalized_by(x: Tensor, deviation: Tensor, mean: Tensor) -> Tensor:
    return (x - mean) / (deviation + 0.1)


def joined_parts(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([a.relu(), b.sigmoid()], 1)


def shuffled(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def regrouped(x: Tensor) -> tuple[Tensor, int]:
    """A shuffle that reads the sizes of what lies in between, as einops does; and one of these sizes."""
    n, c, *rest = x.shape
    parts = x.reshape(n, 4, c // 4, *rest).transpose(1, 2)
    return parts.reshape(n, parts.shape[1] * parts.shape[2], *rest), parts.shape[1]


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def image(x: Tensor) -> Tensor:
    return x.transpose(1, 2).unflatten(2, (8, 8))


def behind_learnt_ones(m: Net, x: Tensor) -> Tensor:
    """What vision transformers do: tokens that were learnt come first, and each place has an embedding."""
    return image((torch.cat([m.a.expand(len(x), -1, -1), tokens(x)], 1) + m.b)[:, m.a.shape[1] :])


def added_twice(m: Net, x: Tensor, *, turned: bool) -> Tensor:
    """A table, seen from two sides, lies under channels along the same axis of it, or along another one."""
    one, other = m.b * 2, m.b.t() * 2
    return m.a(x + one[:, :, None]) + (other if turned else other.t())[:, :, None]


def modulated(m: Net, x: Tensor) -> Tensor:
    """Scales and shifts channels by what one layer makes of the image (FiLM, AdaIN)."""
    scale, shift = m.f(x.mean((2, 3)))[:, :, None, None].chunk(2, 1)
    return m.a(x) * (1 + scale) + shift  # type: ignore[no-any-return]


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


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) / shape[-1] ** 0.5)


def network(forward: Forward, **layers: nn.Module | nn.Parameter) -> Callable[[], nn.Module]:
    return lambda: Net(forward, **layers)


def gated(parts: tuple[Tensor, ...]) -> Tensor:
    first, second = parts
    return first * second.sigmoid()


def crossed(x: Tensor) -> Tensor:
    """Two parts meet, and meet again after one was rolled."""
    first, second = x.chunk(2, 1)
    return torch.cat([first * second, second * first.roll(1, 1)], 1)


def by_another_width(m: Net, x: Tensor) -> Tensor:
    """Lays out channels that stay by the number of those that may go."""
    return m.a(x).softmax(1).view(len(x), 2, x.shape[1] // 2, 8, 8).flatten(1, 2) * shuffled(x, 2)[:, :1]


def similar_heads(m: Net, x: Tensor) -> Tensor:
    """Attention by cosine: a head that repeats another goes as a whole, and one alone looks like no head."""
    q, k, v = (part.unflatten(-1, (3, 4)).transpose(1, 2) for part in m.a(x).chunk(3, -1))
    return m.head(((F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT).softmax(-1) @ v).transpose(1, 2).flatten(2))


def doubled_in_place(x: Tensor) -> None:
    x.add_(x)


torch.fx.wrap("doubled_in_place")


def changed_by_a_wrapped_function(m: Net, x: Tensor) -> Tensor:
    """In a graph, nothing reads the result of the call."""
    x = shuffled(m.a(x), 2)
    doubled_in_place(x)
    return x + 1


def heads(x: Tensor) -> Tensor:
    return x.view(2, 6, 2, -1).transpose(1, 2)


def attention(m: Net, x: Tensor) -> Tensor:
    """Two heads, written out."""
    look = (heads(m.q(x)) @ heads(m.q(x)).mT).softmax(-1)
    return m.head((look @ heads(m.v(x))).transpose(1, 2).flatten(2))


def attention_function(m: Net, x: Tensor) -> Tensor:
    found = F.scaled_dot_product_attention(heads(m.q(x)), heads(m.q(x)), heads(m.v(x)))
    return m.head(found.transpose(1, 2).flatten(2))


def non_local(m: Net, x: Tensor) -> Tensor:
    look = (m.q(x).flatten(2).mT @ m.q(x).flatten(2)).softmax(1)
    return x + (m.v(x).flatten(2) @ look).view_as(x)


def standardized(x: Tensor) -> Tensor:
    deviation, mean = torch.std_mean(x, (2, 3), keepdim=True)
    return (x - mean) / deviation


def largest_and_where(x: Tensor) -> Tensor:
    """For half of the channels the largest value of a row, for the others where it is: these are not alike."""
    largest, where = x.max(3, keepdim=True)
    return x + torch.cat([largest[:, :4], where[:, 4:]], 1)


def gated_in_place(x: Tensor) -> Tensor:
    one, two = x.chunk(2, 1)
    return one.sigmoid_() * two


def filled(x: Tensor, change: Callable[[Tensor], object]) -> Tensor:
    """Zeros, one for each channel, of which some have changed."""
    zeros = x.new_zeros(1, x.shape[1], 1, 1)
    change(zeros)
    return zeros


def by_hand(m: Net, x: Tensor) -> Tensor:
    mean = x.mean(1, keepdim=True)
    variance = (x - mean).pow(2).mean(1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-6) * m.g[:, None, None] + m.b[:, None, None]


def chosen_softly(m: Net, x: Tensor) -> Tensor:
    """Two versions of each channel, weighted by a softmax over the versions (selective kernels)."""
    gates = torch.stack([m.b(x).mean((2, 3)), m.c(x).mean((2, 3))], 1).softmax(1)
    return (torch.stack([x, m.a(x)], 1) * gates[..., None, None]).sum(1)


def written(m: Net, x: Tensor) -> Tensor:
    """Assignment to slices, by an index and by a mask."""
    y = torch.zeros_like(x)
    y[:, :, ::2] = x[:, :, 1::2]
    y[..., 0] = m.a(x)[..., 0]
    y[torch.tensor([1, 0]), :, 1] = x[:, :, 3]
    y[y < 0] = 0.5
    return y


def written_by_gate(m: Net, x: Tensor) -> Tensor:
    y = x.relu()
    y[:, :, 0] = m.a(x)[:, :, 0]
    return y


def written_by_mask(x: Tensor, image: Tensor) -> Tensor:
    """A mask that differs by channel, and of which the recording does not tell that it is one."""
    y = x.relu()
    y[torch.cat([image, image, image[:, :2]], 1).round().bool()] = 0
    return y


def written_in_part(x: Tensor) -> Tensor:
    y = x.relu()
    y[:, 2:5] = 0
    return y


def overwritten(m: Net, x: Tensor) -> Tensor:
    y = x.relu()
    y.copy_(m.a(x))
    z = x.sigmoid().fill_(2.0)
    return y.mul_(2).add_(x) * z + z.zero_()


def with_first_row(x: Tensor) -> Tensor:
    y = x.relu()
    y[:, :, 0] = x[None, :, :, 1]
    return y


def coordinates(x: Tensor) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    return x + (rows - columns).sin()


def regions(layer: Callable[[Tensor, list[Tensor], int], Tensor], x: Tensor) -> Tensor:
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [1.0, 1.0, 6.0, 6.0]], dtype=x.dtype)
    return layer(x, [boxes, boxes], 2)


def moved_by(m: Net, x: Tensor) -> Tensor:
    """A spatial transformer."""
    theta = m.a(x.mean((2, 3))).unflatten(1, (2, 3))
    grid = F.affine_grid(theta, [2, 1, 8, 8], align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def unfolded(m: Net, x: Tensor) -> Tensor:
    """A convolution written as im2col and a product."""
    columns = F.unfold(x, 3, padding=1)
    return (m.w @ columns).unflatten(2, (8, 8))


def chosen(x: Tensor) -> Tensor:
    """Indices of several kinds, away from the channels."""
    y = x[x[:, 0, 0, 0] > -100][:, :, torch.tensor([0, 2, 5])]
    return y[..., torch.tensor([[1, 0], [2, 3]])].flatten(3)


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
    Sample("slopes_from_the_input", lambda: Net(lambda m, x: m.head(F.prelu(m.stem(x), x.mean((0, 2, 3)))), stem=conv(3, 3), head=conv(3, 4)), 0),
    Sample("prelu_one", between(lambda m, x: m.a(x), a=nn.PReLU()), 8),
    Sample("dropout", between(lambda m, x: m.a(x), a=nn.Dropout(0.5)), 8),
    unary("dropout_always", lambda x: F.dropout(x, 0.5), 0),
    unary("whole_numbers", lambda x: x * x.long() + x.short() + (x > 0).int() * x.round().bool() + x.char() + x.abs().byte()),
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
    Sample("halves_scaled", between(lambda m, x: torch.cat([x[:, :4] * 2, x[:, 4:] * 3], 1)), 8),
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
    Sample("mean_over_channels", between(lambda m, x: x * x.mean(1, keepdim=True)), 8),
    Sample("mean_of_all", between(lambda m, x: x - x.mean()), 8),
    Sample("sum_over_channels", between(lambda m, x: x * x.sum(1, keepdim=True)), 0),
    Sample("largest_channel", between(lambda m, x: x * x.amax(1, keepdim=True) + x.max(1, keepdim=True)[0]), 8),
    Sample("place_of_the_largest_channel", between(lambda m, x: x * x.max(1, keepdim=True)[1]), 0),
    Sample("layer_norm_by_hand", between(by_hand, g=scale(8), b=scale(8)), 8),
    Sample("sum_over_versions", between(lambda m, x: torch.stack([x.relu(), m.a(x)], 1).sum(1), a=conv(8, 8)), 8),
    Sample("choice_of_versions", between(chosen_softly, a=conv(8, 8), b=conv(8, 8), c=conv(8, 8)), 8),
    Sample("ghost", between(lambda m, x: torch.cat([x, m.a(x)], 1) + m.b(x), a=conv(8, 8, groups=8), b=conv(8, 16), head=16), 8),
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
    Sample("shuffled_by_sizes_in_between", between(lambda m, x: regrouped(x)[0]), 8),
    Sample("scaled_by_a_size_in_between", between(lambda m, x: operator.mul(*regrouped(x))), 0),
    Sample("token_learnt", between(behind_learnt_ones, a=weight(1, 1, 8), b=weight(1, 65, 8)), 8),
    Sample("tokens_learnt", between(behind_learnt_ones, a=weight(1, 3, 8), b=weight(1, 67, 8)), 8),
    Sample("some_of_the_embeddings", between(lambda m, x: image(tokens(x) + m.a[:, 1:]), a=weight(1, 65, 8)), 8),
    Sample("embeddings_resized", between(lambda m, x: x + F.interpolate(m.a.view(1, 4, 4, 8).permute(0, 3, 1, 2), (8, 8)), a=weight(1, 16, 8)), 8),
    Sample("embeddings_gated", between(lambda m, x: x + F.glu(m.a, 1).mean(0)[:, None, None], a=weight(3, 16)), 0),
    Sample("embeddings_softmaxed", between(lambda m, x: x + m.a.softmax(0)[:, :, None], a=weight(8, 8)), 0),
    Sample("rows_of_a_table", between(lambda m, x: x * m.a[0] + m.a[1], a=weight(2, 8, 1, 1)), 8),
    Sample("parts_of_a_table", between(lambda m, x: torch.addcmul(*[part[0] for part in m.a.chunk(2)], x), a=weight(2, 8, 1, 1)), 8),
    Sample("table_and_constants", between(lambda m, x: x + (m.a * torch.ones(3, 1) + 1)[torch.tensor([2, 0])].mean(0)[:, None, None], a=weight(3, 8)), 8),
    Sample("table_from_two_sides", between(partial(added_twice, turned=False), a=conv(8, 8), b=weight(8, 8)), 8),
    Sample("table_in_two_directions", between(partial(added_twice, turned=True), a=conv(8, 8), b=weight(8, 8)), 0),
    Sample("list_of_chunks", between(grown, a=conv(4, 4), head=16), 8),
    Sample("padded_where_needed", between(padded_same, a=conv(8, 6), head=6), 14),
    Sample("literal_in_a_branch_on_the_data", between(lambda m, x: by_data(x)), 0),
    Sample("one_channel_alone", between(lambda m, x: x * x[:, 3:4].sigmoid()), 7),
    Sample("input_concat", lambda: Net(lambda m, x: m.head(torch.cat([x, m.stem(x)], 1)), stem=conv(3, 8), head=conv(11, 4)), 8),
    Sample("input_beside_added", lambda: Net(lambda m, x: m.head(torch.cat([x, m.stem(x)], 1) + m.a(x)), stem=conv(3, 5), a=conv(3, 8), head=conv(8, 4)), 5),
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
    Sample("group_norm_beside_frozen", between(lambda m, x: m.n(torch.cat([x, m.a(x)], 1)) * x.softmax(1)[:, :1], a=conv(8, 8), n=nn.GroupNorm(1, 16), head=16), 0),
    Sample("guard_against_nan", between(lambda m, x: x * torch.isfinite(x).all()), 8),
    Sample("guard_against_any", between(lambda m, x: torch.where(torch.isnan(x).any(), torch.zeros_like(x), x)), 8),
    Sample("normalised_over_positions", between(lambda m, x: nn.functional.normalize(x, dim=(2, 3))), 8),
    Sample("normalised_over_channels_and_rows", between(lambda m, x: nn.functional.normalize(x, dim=(1, 2))), 0),
    Sample("group_norm_residual", between(lambda m, x: x + m.n(m.a(x)), a=conv(8, 8), n=nn.GroupNorm(4, 8)), 8),
    # contractions
    Sample("einsum", between(lambda m, x: torch.einsum("bchw,oc->bohw", x, m.w), w=weight(8, 8)), 16),
    Sample("einsum_lists", between(lambda m, x: torch.einsum(x, [0, 1, ...], m.w, [2, 1], [0, 2, ...]), w=weight(8, 8)), 16),
    Sample("einsum_channelwise", between(lambda m, x: torch.einsum("bchw,cwv->bchv", x, m.w), w=weight(8, 8, 8)), 8),
    Sample("einsum_over_space", between(lambda m, x: torch.einsum("bchw,vw", x, m.w), w=weight(8, 8)), 8),
    Sample("einsum_grouped", between(lambda m, x: torch.einsum("bgihw,goi->bgohw", x.view(2, 2, 4, 8, 8), m.w).flatten(1, 2), w=weight(2, 4, 4)), 8),
    Sample("einsum_heads", network(lambda m, x: torch.einsum("bhd,hdo->bo", torch.einsum("bc,chd->bhd", x, m.a).sigmoid(), m.b), a=weight(5, 3, 8), b=weight(3, 8, 4)), 8, (2, 5)),
    Sample("einsum_sums_channels", between(lambda m, x: x * torch.einsum("bchw->bhw", x).unsqueeze(1)), 0),
    Sample("linear_over_tokens", network(lambda m, x: m.head(m.b(m.a(m.stem(x).mT).relu()).mT), stem=nn.Linear(5, 8), a=nn.Linear(6, 10), b=nn.Linear(10, 6), head=nn.Linear(8, 4)), 8, (2, 6, 5)),
    Sample("matmul", network(lambda m, x: (x @ m.a).sigmoid() @ m.b, a=weight(5, 8), b=weight(8, 4)), 8, (2, 5)),
    Sample("matmul_transposed", network(lambda m, x: (x @ m.a.t()).sigmoid() @ m.b.to(x.dtype).T, a=weight(8, 5), b=weight(4, 8)), 8, (2, 5)),
    Sample("matmul_from_the_left", network(lambda m, x: m.b @ (m.a @ x).sigmoid(), a=weight(8, 5), b=weight(4, 8)), 8, (5, 3)),
    Sample("matrix_times_vector", network(lambda m, x: torch.mv(m.b, torch.mv(m.a, x).sigmoid()), a=weight(8, 5), b=weight(4, 8)), 8, (5,)),
    Sample("addmm", network(lambda m, x: torch.addmm(m.d, torch.addmm(m.c, x, m.a).sigmoid(), m.b), a=weight(5, 8), b=weight(8, 4), c=weight(8), d=weight(4)), 8, (2, 5)),
    Sample("bmm", network(lambda m, x: torch.bmm(torch.bmm(x, m.a).sigmoid(), m.b), a=weight(2, 5, 8), b=weight(2, 8, 4)), 8, (2, 3, 5)),
    Sample("tensordot", network(lambda m, x: torch.tensordot(torch.tensordot(x, m.a, 1).sigmoid(), m.b, ([1], [1])), a=weight(5, 8), b=weight(4, 8)), 8, (2, 5)),
    Sample("modulated", between(modulated, a=conv(8, 8), f=nn.Linear(8, 16)), 16),
    Sample("bilinear", network(lambda m, x: m.head(m.a(x, x)), a=nn.Bilinear(5, 5, 8), head=nn.Linear(8, 4)), 8, (2, 5)),
    Sample("einsum_by_numbers", between(lambda m, x: torch.einsum(x, [0, 1, 2, 3], m.a, [1, 4], [0, 4, 2, 3]), a=weight(8, 8)), 16),
    Sample("einsum_by_numbers_in_order", between(lambda m, x: torch.einsum(x, [0, 1, 2, 3], m.a, [4, 1]).permute(0, 3, 1, 2), a=weight(8, 8)), 16),
    Sample("matmul_from_the_right", between(lambda m, x: m.a.__rmatmul__(x), a=weight(8, 8)), 8),
    Sample("gram_matrix", between(lambda m, x: x * (x.flatten(2) @ x.flatten(2).mT).mean((1, 2))[:, None, None, None]), 0),
    Sample("non_local", between(non_local, q=conv(8, 4), v=conv(8, 8)), 8),
    Sample("attention", network(attention, q=nn.Linear(5, 8), v=nn.Linear(5, 8), head=nn.Linear(8, 4)), 4, (2, 6, 5)),
    Sample("attention_function", network(attention_function, q=nn.Linear(5, 8), v=nn.Linear(5, 8), head=nn.Linear(8, 4)), 4, (2, 6, 5)),
    Sample("multi_head_attention", network(lambda m, x: m.head(m.a(m.stem(x), m.stem(x), m.stem(x))[0]), stem=nn.Linear(5, 8), a=nn.MultiheadAttention(8, 2, batch_first=True), head=nn.Linear(8, 4)), 0, (2, 6, 5)),
    Sample("lstm", network(lambda m, x: m.head(m.a(m.stem(x))[0]), stem=nn.Linear(5, 8), a=nn.LSTM(8, 6, batch_first=True), head=nn.Linear(6, 4)), 0, (2, 6, 5)),
    # transposed and deformable convolution
    Sample("transposed", between(lambda m, x: m.a(x).relu(), a=nn.ConvTranspose2d(8, 6, 3, stride=2), head=6), 14),
    Sample("transposed_1d", lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.ConvTranspose1d(8, 6, 3), nn.Conv1d(6, 4, 3)), 14, (2, 3, 9)),
    Sample("transposed_3d", lambda: nn.Sequential(nn.Conv3d(3, 8, 3), nn.ConvTranspose3d(8, 6, 3), nn.Conv3d(6, 4, 3)), 14, (2, 3, 5, 5, 5)),
    Sample("transposed_unbatched", lambda: nn.Sequential(conv(3, 8), nn.ConvTranspose2d(8, 6, 3), conv(6, 4)), 14, (3, 8, 8)),
    Sample("transposed_grouped", between(lambda m, x: m.a(x).relu(), a=nn.ConvTranspose2d(8, 12, 3, groups=2), head=12), 10),
    Sample("transposed_grouped_residual", between(lambda m, x: x + m.a(x).relu(), a=nn.ConvTranspose2d(8, 8, 3, padding=1, groups=2)), 4),
    Sample("transposed_depthwise", between(lambda m, x: m.a(x).relu(), a=nn.ConvTranspose2d(8, 8, 2, stride=2, groups=8)), 8),
    Sample("transposed_depthwise_multiplier", between(lambda m, x: m.a(x).relu(), a=nn.ConvTranspose2d(8, 16, 2, stride=2, groups=8), head=16), 8),
    Sample("depthwise_multiplier_residual", between(lambda m, x: m.a(x) + m.b(x), a=conv(8, 16, groups=8), b=conv(8, 16), head=16), 8),
    Sample("deformable", between(lambda m, x: m.a(x, m.b(x)), a=torchvision.ops.DeformConv2d(8, 8, 3, padding=1), b=conv(8, 18)), 16),
    Sample("deformable_depthwise", between(lambda m, x: m.a(x, m.b(x), m.c(x).sigmoid()), a=torchvision.ops.DeformConv2d(8, 8, 3, padding=1, groups=8), b=conv(8, 18), c=conv(8, 9)), 8),
    Sample("deformable_by_part", between(lambda m, x: m.a(x, m.b(x)), a=torchvision.ops.DeformConv2d(8, 8, 3, padding=1), b=conv(8, 36)), 8),
    # places
    Sample("number_of_another_width", between(by_another_width, a=conv(8, 8)), 7),
    Sample("number_of_a_width_scales", between(lambda m, x: shuffled(m.a(x), 2) / x.shape[1] ** 0.5, a=conv(8, 8)), 16),
    Sample("shuffled_and_rolled", between(lambda m, x: shuffled(x, 2).roll((1, 2), (2, 3))), 8),
    Sample("shuffled_deep_multiplier", between(lambda m, x: m.a(shuffled(x, 2)), a=nn.Sequential(nn.Sequential(conv(8, 16, groups=8))), head=16), 8),
    Sample("shuffled_and_constant", between(lambda m, x: shuffled(x, 2) @ torch.arange(64.0).view(8, 8).to(x)), 8),
    Sample("shuffled_and_changed", between(changed_by_a_wrapped_function, a=conv(8, 8)), 16),
    Sample("added_to_a_slice_of_what_nobody_reads", between(lambda m, x: m.a(torch.cat([x, x.relu()], 1)[:, :8].add_(x)), a=conv(8, 8)), 16),
    Sample("added_to_a_slice_of_what_is_read", between(lambda m, x: (y := torch.cat([x, x.relu()], 1), y[:, :8].add_(x))[0], head=16), 0),
    Sample("kernel_that_is_no_buffer", between(lambda m, x: x * F.conv2d(x.mean(1, True), torch.ones(1, 1, 3, 3) / 9, padding=1)), 8),
    Sample("shuffled_and_added_in_place", between(lambda m, x: (shuffled(m.a(x), 2).add_(x), x.relu_())[1], a=conv(8, 8)), 8),
    Sample("weight_that_is_computed", between(lambda m, x: m.b(F.conv2d(m.a(x), m.w / m.w.norm(2, 1, keepdim=True))), a=conv(8, 8), b=conv(6, 8), w=scale(6, 8, 1, 1)), 16),
    Sample("heads_go", network(similar_heads, a=nn.Linear(5, 36), head=nn.Linear(12, 4)), 3, (2, 6, 5)),
    Sample("pixel_shuffle", between(lambda m, x: F.pixel_shuffle(m.a(x), 2), a=conv(8, 24), head=6), 14),
    Sample("pixel_unshuffle", between(lambda m, x: F.pixel_unshuffle(x, 2), head=32), 8),
    Sample("channel_shuffle_function", between(lambda m, x: F.channel_shuffle(x, 2)), 8),
    Sample("unfold_fold", between(lambda m, x: F.fold(F.unfold(x, 3, padding=1).relu(), (8, 8), 3, padding=1)), 8),
    Sample("unfold_matmul", between(unfolded, w=weight(6, 72), head=6), 14),
    Sample("windows", between(lambda m, x: x.unfold(2, 3, 1).mean(-1)), 8),
    Sample("windows_of_channels", between(lambda m, x: x.unfold(1, 2, 2).mean(-1), head=4), 0),
    Sample("repeat", between(lambda m, x: x.repeat(1, 2, 1, 2), head=16), 8),
    Sample("repeat_residual", between(lambda m, x: x.repeat(1, 2, 1, 1) + m.a(x), a=conv(8, 16), head=16), 8),
    Sample("repeat_interleave", between(lambda m, x: x.repeat_interleave(2, 1) * m.a(x), a=conv(8, 16), head=16), 8),
    unary("inverted_mask", lambda x: x.masked_fill(~(x > 0.3), 0.0)),
    unary("cast_by_type", lambda x: x * (x > 0.1).type(x.dtype)),
    unary("repeat_interleave_over_space", lambda x: x.repeat_interleave(2, 3)),
    Sample("tiled_onto_interleaved", between(lambda m, x: x.tile(2, 1, 1) + x.repeat_interleave(2, 1), head=16), 0),
    Sample("broadcast_tensors", between(lambda m, x: gated(torch.broadcast_tensors(x, m.a(x))), a=conv(8, 1)), 8),
    Sample("triangle", between(lambda m, x: x.tril()), 8),
    Sample("triangle_of_channels", network(lambda m, x: m.head(m.stem(x).triu()), stem=nn.Linear(5, 8), head=nn.Linear(8, 4)), 0, (2, 6, 5)),
    Sample("rotated", between(lambda m, x: torch.rot90(x, 1, (2, 3))), 8),
    Sample("rotated_channels", between(lambda m, x: torch.rot90(x, 1, (1, 2))), 0),
    Sample("glu", between(lambda m, x: F.glu(x, 1), head=4), 4),
    Sample("glu_over_space", between(lambda m, x: F.glu(x, 2)), 8),
    Sample("halves_multiplied", between(lambda m, x: gated(x.chunk(2, 1)), head=4), 4),
    Sample("halves_crossed", between(lambda m, x: crossed(x)), 0),
    Sample("hstack", between(lambda m, x: torch.hstack([x, m.a(x).relu()]), a=conv(8, 6), head=14), 14),
    Sample("nothing_behind", between(lambda m, x: torch.cat([x, torch.cat([x[:0], x[:0]])])), 8),
    Sample("nothing_reshaped", between(lambda m, x: torch.cat([x, x[:0].reshape(0, 8, 8, 8)])), 8),
    Sample("reshaped_by_name", between(lambda m, x: x.reshape(shape=(2, 2, 4, 8, 8)).transpose(1, 2).reshape(shape=(2, 8, 8, 8))), 8),
    Sample("split_along_others", between(lambda m, x: torch.cat([torch.cat(x.split(4, 2), 3), *torch.vsplit(torch.cat(torch.dsplit(shuffled(shuffled(x, 2), 4), 2), 3), 2)])), 8),
    Sample("hsplit", between(lambda m, x: joined_parts(*two(torch.hsplit(x, 2)))), 8),
    Sample("parts_of_the_map", between(lambda m, x: shuffled(x, 2).narrow(2, 0, 4).select(3, 0)[..., None].expand(-1, 8, 4, -1)), 8),
    Sample("shuffled_group_norm", between(lambda m, x: F.group_norm(shuffled(x, 2), 2)), 8),
    # tensors made on the way
    Sample("zeros_added", between(lambda m, x: x + torch.zeros(x.shape, dtype=x.dtype)), 8),
    Sample("zeros_like", between(lambda m, x: torch.cat([torch.zeros_like(m.a(x)) + x, torch.ones_like(x)], 1), a=conv(8, 8), head=16), 8),
    Sample("zeros_concat", between(lambda m, x: torch.cat([x, x.new_zeros(2, 4, 8, 8)], 1) + m.a(x), a=conv(8, 12), head=12), 8),
    Sample("expanded_as", between(lambda m, x: torch.cat([x, m.a(x).expand_as(x)], 1), a=conv(8, 1), head=16), 8),
    Sample("coordinates", between(lambda m, x: coordinates(x)), 8),
    Sample("ramp_over_channels", between(lambda m, x: x + torch.arange(8.0).view(8, 1, 1)), 0),
    Sample("gate_alone", between(lambda m, x: x * m.a(x)[:, 1:2], a=conv(8, 2)), 8),
    # indices and assignment
    Sample("indexed", between(lambda m, x: chosen(x)), 7),
    Sample("indices_of_a_condition", between(lambda m, x: x[torch.where(x[:, 0, 0, 0] > -100)]), 7),
    Sample("indexed_by_list", between(lambda m, x: x[:, [7, 6, 5, 4, 3, 2, 1, 0]]), 8),
    Sample("indexed_together", between(lambda m, x: x[[0, 1, 0, 1, 0, 1, 0, 1], [0, 1, 2, 3, 4, 5, 6, 7]].unsqueeze(0)), 0),
    Sample("indexed_channels", between(lambda m, x: x[:, torch.arange(8)]), 0),
    Sample("index_select_space", between(lambda m, x: x.index_select(2, torch.tensor([0, 2]))), 8),
    Sample("gather", between(lambda m, x: x.gather(3, x.argsort(3)) + torch.take_along_dim(x, m.a(x).argmax(3, keepdim=True), 3), a=conv(8, 8)), 8),
    Sample("scatter", between(lambda m, x: torch.zeros_like(x).scatter(3, x.argsort(3), x)), 8),
    Sample("index_add", between(lambda m, x: x.index_add(3, torch.tensor([0, 2]), m.a(x)[..., :2]), a=conv(8, 8)), 8),
    Sample("gather_channels", between(lambda m, x: x.gather(1, x.argsort(1))), 0),
    Sample("written", between(written, a=conv(8, 8)), 8),
    Sample("written_by_gate", between(written_by_gate, a=conv(8, 1)), 8),
    Sample("written_by_mask", network(lambda m, x: m.head(written_by_mask(m.stem(x), x)), stem=conv(3, 8), head=conv(8, 4)), 0),
    Sample("written_in_part", between(lambda m, x: written_in_part(x)), 0),
    Sample("overwritten", between(overwritten, a=conv(8, 8)), 8),
    Sample("written_with_an_axis_more", between(lambda m, x: with_first_row(x)), 8),
    # over one axis, by position
    Sample("standardized", between(lambda m, x: standardized(x)), 8),
    Sample("values_beside_places", between(lambda m, x: largest_and_where(x)), 8),
    Sample("norm_over_space", between(lambda m, x: x / x.norm(2, 2, keepdim=True)), 8),
    Sample("norm_over_channels", between(lambda m, x: x / x.norm(2, 1, keepdim=True)), 0),
    Sample("variance_of_all", between(lambda m, x: x / x.var(False)), 0),
    Sample("variance_of_channels", between(lambda m, x: x / x.var(1, keepdim=True).sqrt()), 0),
    Sample("biased_variance_of_channels", between(lambda m, x: (x - x.mean(1, keepdim=True)) / (x.var(1, False, keepdim=True) + 0.1).sqrt()), 8),
    Sample("uncorrected_variance_of_channels", between(lambda m, x: x / (torch.var(x, dim=1, correction=0, keepdim=True) + 0.1).sqrt()), 8),
    Sample("deviation_and_mean_of_channels", between(lambda m, x: normalized_by(x, *torch.std_mean(x, 1, unbiased=False, keepdim=True))), 8),
    Sample("normalized_by_rms", between(lambda m, x: torch.rms_norm(x.movedim(1, 3), (8,), m.w, 1e-6).movedim(3, 1), w=nn.Parameter(torch.rand(8))), 8),
    # as NumPy calls them
    Sample("chunks_by_axis", between(lambda m, x: gated(x.chunk(2, axis=1)), head=4), 4),
    Sample("stacked_by_axis", between(lambda m, x: torch.stack([x, x.relu()], axis=1).flatten(1, 2), head=16), 8),
    Sample("narrowed_by_axis", between(lambda m, x: x.narrow(axis=2, start=0, length=4)), 8),
    Sample("sorted_by_axis", between(lambda m, x: x.sort(axis=1)[0]), 0),
    Sample("softmax_by_axis", between(lambda m, x: x.softmax(axis=-1)), 8),
    Sample("shuffled_by_name", between(lambda m, x: torch.flatten(input=x.view(2, 2, 4, 8, 8).transpose(1, 2), start_dim=1, end_dim=2)), 8),
    Sample("maximum", between(lambda m, x: torch.max(x, m.a(x)), a=conv(8, 8)), 8),
    Sample("clamped_by_tensor", between(lambda m, x: torch.clamp(x, min=m.a(x)), a=conv(8, 8)), 8),
    Sample("largest_three", between(lambda m, x: x.topk(3, 3)[0]), 8),
    Sample("unpooled", between(lambda m, x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2)), 8),
    Sample("unpooled_elsewhere", between(lambda m, x: m.u(m.a(x)[:, :, ::2, ::2], m.p(shuffled(x, 2))[1], output_size=x.shape), a=conv(8, 8), p=nn.MaxPool2d(2, return_indices=True), u=nn.MaxUnpool2d(2)), 8),
    Sample("unpooled_1d", between(lambda m, x: F.max_unpool1d(*F.max_pool1d(x.flatten(2), 2, return_indices=True), 2).unflatten(2, (8, 8))), 8),
    Sample("unpooled_3d", between(lambda m, x: F.max_unpool3d(*F.max_pool3d(x[:, :, None], (1, 2, 2), return_indices=True), (1, 2, 2))[:, :, 0]), 8),
    Sample("sorted_in_vain", between(lambda m, x: (x.sort(2), x.aminmax(dim=2), x)[2]), 8),
    Sample("sorted_channels", between(lambda m, x: x.sort(1)[0]), 0),
    Sample("spatial_transformer", between(moved_by, a=nn.Linear(8, 6)), 8),
    Sample("roi_align", network(lambda m, x: m.head(regions(torchvision.ops.roi_align, m.stem(x)).flatten(1).relu()), stem=conv(3, 8), head=nn.Linear(32, 4)), 8),
    Sample("roi_pool", network(lambda m, x: m.head(regions(torchvision.ops.roi_pool, m.stem(x)).flatten(1).relu()), stem=conv(3, 8), head=nn.Linear(32, 4)), 8),
    Sample("roi_align_by_position", network(lambda m, x: m.head(regions(torchvision.ops.ps_roi_align, m.stem(x))), stem=conv(3, 8), head=conv(2, 4)), 0),
    Sample("response_norm", between(lambda m, x: F.local_response_norm(x, 2)), 0),
    # numbers of NumPy
    Sample("numpy_sizes", lambda: Net(lambda m, x: m.head(m.stem(x).view(-1, np.prod((8, 8, 8)))), stem=conv(3, 8), head=nn.Linear(512, 4)), 8),
    Sample("numpy_groups", between(lambda m, x: m.a(x), a=conv(8, 8, groups=np.int64(4))), 4),
    Sample("numpy_slices", between(lambda m, x: torch.cat([x[:, np.int64(4):], x[:, : np.int64(4)]], np.int64(1))), 8),
    Sample("numpy_axes", between(lambda m, x: F.pad(x.flip(np.int64(2)).roll(np.int64(1), np.int64(3)).narrow(np.int64(2), np.int64(0), np.int64(4)), (np.int64(1), 1))), 8),
    Sample("numpy_choice", between(lambda m, x: x[:, np.arange(8)[::-1].copy()]), 8),
    Sample("numpy_sums", between(lambda m, x: x.sum(np.int64(2), keepdim=True) + x.softmax(np.int64(3))), 8),
    # constants with a size that is written out
    Sample("zeros_of_a_written_size", between(lambda m, x: x + torch.zeros(1, 8, 8, 8, dtype=x.dtype)), 0),
    Sample("ones_of_a_written_size", between(lambda m, x: torch.maximum(x, torch.ones(8, 1, 1, dtype=x.dtype))), 0),
    Sample("zeros_of_one_size", between(lambda m, x: x + torch.zeros(1, 1, 8, 8, dtype=x.dtype)), 8),
    # arguments by name, parts of parts, other names
    Sample("reshaped_by_name", between(lambda m, x: torch.reshape(input=x, shape=(-1, 512)).view(-1, 8, 8, 8)), 8),
    # tables
    Sample("class_embedding", between(lambda m, x: m.a(x) + m.t(torch.tensor([1, 2]))[:, :, None, None], a=conv(8, 8), t=nn.Embedding(5, 8)), 16),
    Sample("conditional_norm", between(lambda m, x: (g := m.t(torch.tensor([1, 2]))[:, :, None, None].chunk(2, 1), m.n(x) * g[0] + g[1])[1], n=nn.BatchNorm2d(8, affine=False), t=nn.Embedding(5, 16)), 8),
    Sample("bag_of_words", between(lambda m, x: x * m.t(torch.tensor([[0, 1, 2], [3, 4, 0]]))[:, :, None, None], t=nn.EmbeddingBag(5, 8, mode="max")), 8),
    Sample("table_that_rescales", between(lambda m, x: x * m.t(torch.tensor([1, 2]))[:, :, None, None], t=nn.Embedding(5, 8, max_norm=1.0)), 0),
    Sample("table_that_reads_as_well", between(lambda m, x: x + F.linear(m.t(torch.tensor([1, 2])), m.t.weight)[:, :, None, None], t=nn.Embedding(8, 6)), 0),
    # a number for each branch, and places told apart by those that they meet
    Sample("constants_of_branches", between(lambda m, x: (torch.stack([x, m.a(x)], -1) * torch.tensor([0.3, 0.7], dtype=x.dtype)).sum(-1), a=conv(8, 8)), 8),
    Sample("attended_branches", between(lambda m, x: (torch.stack([x, m.a(x)], -1) * m.w.softmax(0)).sum(-1), a=conv(8, 8), w=weight(2)), 8),
    Sample("weighted_branches", between(lambda m, x: (torch.stack([x, m.a(x)]) * m.w.exp().view(2, 1, 1, 1, 1)).sum(0), a=conv(8, 8), w=weight(2)), 8),
    Sample("plainly_weighted_branches", between(lambda m, x: (torch.stack([x, m.a(x)], -1) * m.w).sum(-1), a=conv(8, 8), w=weight(2)), 8),
    Sample("multiplied_and_chunked", between(lambda m, x: gated(m.a(x).chunk(2, 1)), a=conv(8, 16, groups=8)), 4),
    Sample("selected_kernels", between(lambda m, x: (p := torch.stack([m.a(x), m.b(x)], 1), (p * m.c(p.sum(1).mean((2, 3), keepdim=True)).unflatten(1, (2, -1)).softmax(1)).sum(1))[1], a=conv(8, 8, groups=4), b=conv(8, 8, groups=4), c=conv(8, 16)), 4),
    Sample("cut_where_a_tensor_says", between(lambda m, x: x[:, :, : torch.tensor(4)]), 8),
    Sample("turned_by_numpys_name", between(lambda m, x: torch.flip(x=torch.transpose(a=x, dim0=2, dim1=3), dims=[1])), 8),
    Sample("split_by_name", between(lambda m, x: torch.cat(torch.split(tensor=x, split_size_or_sections=4, dim=1)[::-1], 1)), 8),
    Sample("some_of_the_parts", between(lambda m, x: torch.cat([(p := x.split(2, 1))[0], *[t * 2 for t in p[1:]]], 1)), 8),
    Sample("other_names", between(lambda m, x: torch.multiply(torch.absolute(x), 2.0).negative().subtract(1).divide(3)), 8),
    # parts of one tensor that change in place
    Sample("gate_in_place", between(lambda m, x: gated_in_place(x), head=4), 4),
    Sample("part_in_place", between(lambda m, x: torch.cat([x[:, :4], F.relu(x[:, 4:], inplace=True)], 1)), 8),
    Sample("whole_behind_a_part", between(lambda m, x: (x[:, :4].relu_(), x)[1]), 0),
    # constants that change through a view
    Sample("half_of_zeros_filled", between(lambda m, x: x * filled(x, lambda z: z[:, :4].fill_(1.0))), 0),
    Sample("chunk_of_zeros_raised", between(lambda m, x: x * filled(x, lambda z: z.chunk(2, 1)[1].add_(1.0))), 0),
    Sample("zeros_in_other_shape_set", between(lambda m, x: x * filled(x, lambda z: z.view(-1)[3:].fill_(1.0))), 0),
    Sample("all_zeros_filled", between(lambda m, x: x * filled(x, lambda z: z.view(-1).fill_(1.0))), 0),
    # names that are taken
    Sample("plain_attribute", lambda: Net(lambda m, x: m.head(m.stem(x - m.mean).view(-1, 512)), mean=torch.rand(1, 3, 1, 1), stem=conv(3, 8), head=nn.Linear(512, 4)), 8),
    Sample("plain_attribute_inside", lambda: nn.Sequential(Net(lambda m, x: m.stem(x - m.mean).view(-1, 512), mean=torch.rand(1, 3, 1, 1), stem=conv(3, 8)), nn.Linear(512, 4)), 8),
    Sample("name_of_a_gather", between(lambda m, x: shuffled(x, 2) * m.gather_0, gather_0=nn.Parameter(torch.rand(1))), 8),
    # movements that end where they began
    Sample("split_and_joined", between(lambda m, x: x.unflatten(1, (2, 4)).flatten(1, 2)), 8),
    Sample("flipped_twice", between(lambda m, x: x.view(len(x), 2, 4, 8, 8).flip(1).flip(1).view(len(x), 8, 8, 8)), 8),
    Sample("output_is_stem", lambda: nn.Sequential(conv(3, 8), nn.ReLU()), 0),
)  # fmt: skip
