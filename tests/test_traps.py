"""Small networks that once fooled the analysis or the rewrite: each must merge exactly or be refused up front."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from activations import differences_inside_clusters, random_partition
from samples import Forward, Net, between, conv, scale
from torch import Tensor, nn

from pdc_fx import analyze, rewrite, tie
from pdc_fx.errors import NothingToMergeError
from pdc_fx.passes.check import check
from pdc_fx.passes.random_plans import random_halves
from pdc_fx.passes.tie import Tying


class Normalised(nn.Module):
    """Mean and deviation of the input are buffers of the model."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.rand(shape))
        self.register_buffer("std", torch.rand(shape) + 1)
        self.body = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body((x - self.mean) / self.std)
        return y


class Optional(nn.Module):
    """A flag with a default beside the input, and a literal view."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = conv(3, 8), nn.Linear(512, 4)

    def forward(self, x: Tensor, features: bool = False) -> Tensor:
        x = self.body(x)
        if features:
            return x
        y: Tensor = self.head(x.view(-1, 512))
        return y


class RowsOfEight(nn.Module):
    """A view that writes out how many channels a row has, and works with other numbers: of 64 rows of four it makes 32 of eight."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = conv(3, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.body(x).permute(0, 2, 3, 1).reshape(-1, 8))
        return y


class SizeOfAnother(nn.Module):
    """The width of a map that shrinks is used to view one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 8), conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        n, c, h, w = x.shape
        y: Tensor = self.b(x).view(n, c, h * w).softmax(1).sum(2)
        return y


class InPlaceAlias(nn.Module):
    """``identity`` is the tensor that ``x += y`` changes; a literal view asks for an edited graph."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 8), conv(8, 8), nn.Linear(512, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        identity = x
        x += self.b(x)
        y: Tensor = self.head((identity.relu() + x).view(-1, 512))
        return y


def gated_twice(m: Net, x: Tensor) -> Tensor:
    return torch.cat([x[:, :4] * m.a(x).sigmoid(), x[:, 4:] * m.b(x).sigmoid()], 1)


def two_constants(m: Net, x: Tensor) -> Tensor:
    """Beside the features, copies of the first plane of the input and copies of the second."""
    planes = [x[:, i : i + 1].expand(-1, 3, -1, -1) for i in range(2)]
    y: Tensor = m.head(torch.cat([m.stem(x), *planes], 1))
    return y


def shuffled(x: Tensor) -> Tensor:
    return x.view(2, 2, 4, 8, 8).transpose(1, 2).reshape(2, 8, 8, 8)


class Unpacked(nn.Module):
    """An input that is a dict, which is unpacked before it is used."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(3, 8), conv(8, 4)

    def forward(self, images: dict[str, Tensor]) -> Tensor:
        given = {**images}
        y: Tensor = self.head(shuffled(self.stem(given["left"])))
        return y


class Indexed(nn.Module):
    """A pooling that gives two results, beside a shuffle that is to be edited."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.beside, self.head = conv(3, 8), conv(3, 8), conv(8, 4)
        self.pool = nn.MaxPool2d(2, return_indices=True)

    def forward(self, x: Tensor) -> Tensor:
        pooled, _ = self.pool(self.stem(x))
        y: Tensor = self.head(shuffled(self.beside(x)).relu()[:, :, :4, :4] + pooled)
        return y


def in_place_on_a_view(m: Net, x: Tensor) -> Tensor:
    x.chunk(2, 1)[0].relu_()
    return x


def attended(m: Net, x: Tensor) -> Tensor:
    """Beside what is to be edited, a module whose result is not one tensor."""
    rows = m.stem(x).flatten(2).transpose(1, 2)
    y: Tensor = m.attention(rows, rows, rows)[0].transpose(1, 2).reshape(2, 8, 8, 8)
    return m.head(shuffled(m.beside(x)) + m.last(y))  # type: ignore[no-any-return]


Build = Callable[[], nn.Module]


def bounds() -> dict[str, nn.Parameter]:
    return {"low": nn.Parameter(-torch.rand(8, 1, 1)), "high": nn.Parameter(torch.rand(8, 1, 1))}


TRAPS: dict[str, Build] = {
    "input_normalised_by_buffers": lambda: Normalised(1, 3, 1, 1),
    "input_normalised_by_small_buffers": lambda: Normalised(3, 1, 1),
    "rows_of_eight": RowsOfEight,
    "roll": between(lambda m, x: x.roll(1, 1)),
    "roll_of_everything": between(lambda m, x: x.roll(1)),
    "strided_slices": between(lambda m, x: torch.cat([x[:, ::2].relu(), x[:, 1::2]], 1)),
    "slice_from_the_middle": between(lambda m, x: torch.cat([x[:, 2:3], x], 1), head=9),
    "integer_index": between(lambda m, x: torch.cat([x[:, 2].unsqueeze(1), x], 1), head=9),
    "integer_index_as_a_gate": between(lambda m, x: x * x[:, 2].unsqueeze(1)),
    "select": between(lambda m, x: torch.cat([x.select(1, 2).unsqueeze(1), x], 1), head=9),
    "narrow": between(lambda m, x: torch.cat([x.narrow(1, 0, 4).relu(), x.narrow(1, 4, 4)], 1)),
    "flip": between(lambda m, x: x.flip(1)),
    "scaled_by_width_of_the_shape": between(lambda m, x: x / x.shape[1] ** 0.5),
    "scaled_by_width_of_the_module": between(lambda m, x: x * m.stem.out_channels**-0.5),
    "filled_with_the_width": between(lambda m, x: x + torch.full((x.shape[1], 1, 1), float(x.shape[1])).to(x)),
    "default_argument": Optional,
    "size_of_another_map": SizeOfAnother,
    "in_place_alias": InPlaceAlias,
    "in_place_on_a_view": between(in_place_on_a_view),
    "repeated": between(lambda m, x: x.repeat(1, 2, 1, 1), head=16),
    "concat_with_itself": between(lambda m, x: torch.cat([x, x], 1), head=16),
    "both_signs": between(lambda m, x: torch.cat([x, -x], 1).relu(), head=16),
    "two_gates": between(gated_twice, a=conv(8, 1), b=conv(8, 1)),
    "one_channel_apart": between(lambda m, x: torch.cat(x.split([1, 7], 1)[::-1], 1)),
    "norm_without_entries": between(lambda m, x: m.a(x), a=nn.InstanceNorm2d(8)),
    "map_of_biases": between(lambda m, x: x + m.g, g=scale(1, 8, 8, 8)),
    "clamped_by_channel": lambda: between(lambda m, x: x.clamp(m.low, m.high), **bounds())(),
    "places_of_a_mask": between(lambda m, x: x * float(len(torch.where(x > 0)[0]) > 0)),
    "unflatten": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(192, 96), nn.ReLU(), nn.Unflatten(1, (6, 4, 4)), conv(6, 4)
    ),
    "depthwise_with_literal_groups": between(
        lambda m, x: nn.functional.conv2d(x, m.w, padding=1, groups=8), w=scale(8, 1, 3, 3)
    ),
    "two_constants": lambda: Net(two_constants, stem=conv(3, 8), head=conv(14, 4)),
    "viewed_parameter": between(lambda m, x: x * m.g.view(1, 8, 1, 1), g=scale(8)),
    "padded_after_one_channel": between(
        lambda m, x: torch.nn.functional.pad(m.a(x), (0, 0, 0, 0, 0, 7)) + x, a=conv(8, 1)
    ),
}


@pytest.mark.parametrize("name", TRAPS)
def test_merges_exactly_or_is_refused_up_front(name: str) -> None:
    torch.manual_seed(0)
    model = TRAPS[name]()
    for seed in range(6):
        try:
            certificate = check(model, torch.randn(2, 3, 8, 8), seed=seed)
        except NothingToMergeError:
            return
        assert certificate.passed, f"relative error {certificate.max_rel_error:.2g}"


@pytest.mark.parametrize("name", TRAPS)
def test_the_analysis_is_right_whatever_the_rewrite_does(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = TRAPS[name]().double().requires_grad_(False), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    groups = analyze(model, inputs)
    for seed in range(6 if groups.groups else 0):
        plan, tied = random_partition(groups, seed), copy.deepcopy(model)
        Tying(tied, plan, "hard").snap()
        found = differences_inside_clusters(tied, plan, inputs)
        assert not found.differences, "\n".join(map(str, found.differences))


def summed_between(_: Net, x: Tensor) -> Tensor:
    halves = x.view(2, 2, 4, 8, 8)
    return halves.transpose(1, 2).reshape(2, 8, 8, 8) + halves.sum(1).repeat(1, 2, 1, 1)


def activated_twice(x: Tensor) -> tuple[Tensor, Tensor]:
    """In a graph, one call of two results, neither of which is a part of a tuple that torch made."""
    return x.relu(), x.sigmoid()


torch.fx.wrap("activated_twice")


FOLLOWED: dict[str, tuple[Build, int]] = {
    "size_as_a_number": (between(lambda m, x: shuffled(x * int(x.shape[2]))), 8),
    "unpacked_dict": (Unpacked, 8),
    "two_results": (Indexed, 8),
    "attention_beside": (
        lambda: Net(
            attended,
            **{"stem": conv(3, 8), "attention": nn.MultiheadAttention(8, 2, batch_first=True), "beside": conv(3, 8)},
            **{"last": conv(8, 8), "head": conv(8, 4)},
        ),
        8,
    ),
    "wrapped_function": (between(lambda m, x: activated_twice(x.view(2, 8, 8, 8))[0]), 8),
    "value_as_a_number": (between(lambda m, x: shuffled(x) * int(x.mean() > -100)), 0),
    "space_among_the_channels": (between(lambda m, x: x.view(2, 2, 4, 64).transpose(1, 3).reshape(2, 8, 8, 8)), 0),
    "summed_between": (between(summed_between), 0),
    "activation_between": (between(lambda m, x: x.view(2, 2, 4, 8, 8).transpose(1, 2).relu().reshape(2, 8, 8, 8)), 0),
}
"""A network, and how many of its channels can follow where sizes are written into it."""


@pytest.mark.parametrize("name", FOLLOWED)
def test_what_a_symbolic_graph_can_follow(name: str) -> None:
    torch.manual_seed(0)
    build, channels = FOLLOWED[name]
    image = torch.randn(2, 3, 8, 8)
    inputs = ({"left": image},) if build is Unpacked else image
    groups = analyze(build(), inputs)
    assert groups.mergeable_channels == channels
    stuck = {f.reason for f in groups.frozen if "attention heads" not in f.reason} - {"is an output of the model"}
    if not channels:
        assert stuck == {"is spread over several axes of a tensor, or alone in it"}
        return
    assert stuck == set()
    assert check(build(), inputs).passed


def scanned(rows: Callable[[Tensor], Any]) -> Forward:
    """Each row adds the one above; the eight channels are written out."""

    def forward(m: Net, x: Tensor) -> Tensor:
        y = list(rows(m.stem(x).view(-1, 8, *x.shape[2:])))
        for i in range(1, len(y)):
            y[i] = y[i] + y[i - 1].relu()
        return m.head(torch.cat(y, 2).mean((2, 3), keepdim=True))  # type: ignore[no-any-return]

    return forward


class Here(Net):
    """Its forward pass is written in this file."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x)


NUMBERS: dict[str, tuple[Forward, bool]] = {
    "rows split": (scanned(lambda y: y.split(1, 2)), True),
    "rows unbound": (scanned(lambda y: [row.unsqueeze(2) for row in y.unbind(2)]), True),
    "rows counted": (scanned(lambda y: [y[:, :, i : i + 1] for i in range(y.shape[2])]), True),
    "narrowed": (
        lambda m, x: m.head(nn.functional.pad(m.stem(x).view(-1, 8, *x.shape[2:]), (1, 1)).narrow(3, 1, x.shape[3])),
        True,
    ),
    "length": (lambda m, x: m.head(m.stem(x).view(len(x), 8, *x.shape[2:]).mean((2, 3), keepdim=True)), True),
    "asked": (
        lambda m, x: m.head(m.stem(x).view(-1, 8, *x.shape[2:]) * (2 if isinstance(x.shape[0], int) else 3)),
        True,
    ),
    "image by image": (lambda m, x: torch.stack([m.head(m.stem(y).view(8, *y.shape[1:])) for y in x]), False),
    "batch as a number": (lambda m, x: m.head(m.stem(x).view(int(x.shape[0]), 8, *x.shape[2:])), False),
}
"""Forward passes that make numbers of sizes, and whether channels that are written out follow all the same."""


@pytest.mark.parametrize("case", NUMBERS.values(), ids=NUMBERS)
def test_other_sizes_are_right_or_refused(case: tuple[Forward, bool]) -> None:
    """A graph that was traced at one size must not leave rows or images out at another one."""
    forward, follows = case
    rows = "scanned" in forward.__qualname__
    torch.manual_seed(0)
    model, image = Here(forward, stem=conv(3, 8), head=conv(8, 4)).double(), torch.randn(2, 3, 6, 6).double()
    groups = analyze(model, image)
    assert groups.mergeable_channels == (8 if follows else 0)
    if not follows:
        assert any("view holds sizes that torch.fx cannot trace and edit" in f.reason for f in groups.frozen)
        return
    tied_plan = tie(model, random_halves(groups, 0), mode="hard").snap()
    compact = rewrite(model, tied_plan, image)
    for shape in ((5, 3, 6, 6), (1, 3, 6, 6), (2, 3, 6, 9)):
        other = torch.randn(shape).double()
        torch.testing.assert_close(compact(other), model(other))
    with pytest.raises(AssertionError, match="traced where a size is 6") if rows else nullcontext():
        torch.testing.assert_close(compact(torch.ones(2, 3, 9, 6).double()), model(torch.ones(2, 3, 9, 6).double()))


def test_a_shuffle_whose_channels_all_stay_is_left_as_it_is() -> None:
    """The first is read in between, where no channel can go; the second becomes a gather."""

    def twice(m: Net, x: Tensor) -> Tensor:
        parts = x.view(2, 2, 4, 8, 8)
        return shuffled(m.a(parts.transpose(1, 2).reshape(x.shape) + parts.relu().transpose(1, 2).reshape(x.shape)))

    torch.manual_seed(0)
    model, x = between(twice, a=conv(8, 8))().eval(), torch.randn(2, 3, 8, 8)
    plan = tie(model, random_halves(analyze(model, x), 0), mode="hard").snap()
    compact = rewrite(model, plan, x)
    assert torch.allclose(compact(x), model(x), atol=1e-5)
    assert [node.args[0].name for node in compact.graph.nodes if node.target is torch.index_select] == ["a"]
