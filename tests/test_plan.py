"""Budgets are met, clusters are sensible, plans survive JSON."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from samples import between, conv
from torch import nn
from torch.nn import functional as F

from pdc_fx.errors import ArtifactError, InputError, NothingToMergeError, PlanError
from pdc_fx.ir import ChannelGroups, ClusterPlan, decode_integers, encode_integers, first_appearance
from pdc_fx.passes.allocation import PlanClusters
from pdc_fx.passes.axes import named_tensors
from pdc_fx.passes.check import check
from pdc_fx.passes.cluster import balanced, features, ward
from pdc_fx.pipeline import analyze, calibrate, plan, rewrite, tie


@pytest.fixture(scope="module")
def resnet() -> tuple[nn.Module, ChannelGroups]:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10)
    return model, analyze(model, torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize("target", [0.1, 0.5, 0.615, 0.9])
def test_flops_reduction_is_met(resnet: tuple[nn.Module, ChannelGroups], allocation: Any, target: float) -> None:
    found = plan(*resnet, flops_reduction=target, allocation=allocation)
    assert abs(found.flops_reduction - target) <= 0.01
    if allocation == "uniform":
        kept = [found.widths[i] / g.channels for i, g in enumerate(found.groups.groups)]
        assert max(kept) - min(kept) <= 1 / 16


def test_a_narrow_layer_is_not_emptied_for_its_large_maps() -> None:
    """Filters are random, so no layer is more redundant than another; a sum of squares that is not relative leaves 1 of 16."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 16, 3, 1, 1),
        nn.Conv2d(16, 16, 3, 1, 1),
        nn.Conv2d(16, 64, 3, 2, 1),
        nn.Conv2d(64, 64, 3, 2, 1),
    ]
    model = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())), nn.Conv2d(64, 64, 3, 1, 1))
    groups = analyze(model, torch.zeros(1, 3, 16, 16))
    found = plan(model, groups, flops_reduction=0.5)
    assert min(found.widths[i] / g.channels for i, g in enumerate(groups.groups)) > 0.1


def test_what_saves_more_goes_first() -> None:
    """Two groups of equally different filters, the first on maps of 64 times as many positions."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, 8, 1), nn.ReLU(), nn.Conv2d(16, 4, 3, padding=1)
    )
    groups = analyze(net, torch.zeros(1, 3, 32, 32))
    reduction = 1 - groups.macs({0: 10}) / groups.macs()
    assert plan(net, groups, flops_reduction=reduction).widths == {0: 10, 1: 16}


def test_of_equal_savings_what_removes_fewer_weights_goes_first() -> None:
    """Two branches of the same filters, the second of them 3 by 3 on maps of a ninth: as much is saved, with 9 times the weights."""

    def branch(kernel: int) -> nn.Sequential:
        first, second = (nn.Conv2d(*io, kernel, padding=kernel // 2, bias=False) for io in ((3, 16), (16, 4)))
        return nn.Sequential(first, nn.ReLU(), second)

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.large, self.small = branch(1), branch(3)
            for one, other in zip(self.large.parameters(), self.small.parameters(), strict=True):
                other.data = one.data.expand_as(other).clone()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.avg_pool2d(self.large(x), 3) + self.small(F.avg_pool2d(x, 3))

    torch.manual_seed(0)
    net = Branches()
    groups = analyze(net, torch.zeros(1, 3, 24, 24))
    for merges in (1, 2):
        fewer, more = (1 - groups.macs({group: 16 - merges}) / groups.macs() for group in (0, 1))
        assert fewer == more
        planner = PlanClusters(net, flops_reduction=fewer).over(list, capacity=0.5)
        assert planner(groups).widths == {0: 16 - merges, 1: 16}


def test_weights_that_are_not_finite_are_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    groups = analyze(model, torch.zeros(1, 3, 8, 8))
    with torch.no_grad():
        model[0].weight[3, 0, 0, 0] = float("nan")  # type: ignore[index]
    with pytest.raises(InputError, match=r"not finite.*'0\.weight'"):
        plan(model, groups, flops_reduction=0.5)


def test_params_reduction_is_met(resnet: tuple[nn.Module, ChannelGroups]) -> None:
    found = plan(*resnet, params_reduction=0.5)
    assert abs(1 - found.params_after / found.params_before - 0.5) <= 0.01


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_widths_are_rounded(resnet: tuple[nn.Module, ChannelGroups], allocation: Any) -> None:
    found = plan(*resnet, flops_reduction=0.5, allocation=allocation, round_to=8)
    assert all(width % 8 == 0 for width in found.widths.values())


def test_resnet18_macs_by_hand(resnet: tuple[nn.Module, ChannelGroups]) -> None:
    """The stem alone: 64 filters of 3 x 7 x 7 at 32 x 32 places."""
    _, groups = resnet
    stem = next(site for site in groups.sites if site.tensor == "conv1.weight")
    assert stem.uses * 64 * 3 * 7 * 7 == 64 * 147 * 32 * 32


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({}, InputError, "exactly one"),
        ({"flops_reduction": 0.5, "params_reduction": 0.5}, InputError, "exactly one"),
        ({"flops_reduction": 1.0}, InputError, "between 0 and 1"),
        ({"flops_reduction": float("nan")}, InputError, "between 0 and 1"),
        ({"flops_reduction": 0.5, "allocation": "local"}, InputError, "allocation"),
        ({"flops_reduction": 0.5, "round_to": 0}, InputError, "at least 1"),
        ({"flops_reduction": 0.5, "min_channels": 0}, InputError, "^min_channels is a whole number from 1 on, not 0$"),
        ({"flops_reduction": "0.5"}, InputError, r"^a reduction is a number between 0 and 1, not '0\.5' \(str\)$"),
        ({"flops_reduction": True}, InputError, "not True"),
        ({"flops_reduction": 0.5, "min_channels": "2"}, InputError, "whole number from 1 on, not '2'"),
        ({"flops_reduction": 0.5, "round_to": 8.0}, InputError, r"at least 1, or 'auto', not 8\.0"),
        ({"flops_reduction": 0.95, "min_channels": 48}, PlanError, "largest possible here is"),
    ],
)
def test_refusals(resnet: tuple[nn.Module, ChannelGroups], options: dict[str, Any], error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        plan(*resnet, **options)


def test_nothing_to_merge() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    with pytest.raises(NothingToMergeError):
        plan(model, analyze(model, torch.zeros(1, 3, 8, 8)), flops_reduction=0.5)


def test_frozen_by_request() -> None:
    model = between(lambda m, x: m.a(x), a=conv(8, 8))()
    groups = analyze(model, torch.zeros(1, 3, 8, 8), frozen=["a"])
    assert groups.mergeable_channels == 0  # neither what it makes nor what it reads may change its shape
    assert analyze(model, torch.zeros(1, 3, 8, 8)).mergeable_channels == 16
    assert any("by request" in f.reason for f in groups.frozen)


def test_ward_joins_the_filters_that_are_alike() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 3))
    with torch.no_grad():
        model[0].weight[3:] = model[0].weight[:3] * 1.001
        model[0].bias[3:] = model[0].bias[:3]
    group = analyze(model, torch.zeros(1, 3, 9, 9)).groups[0]
    tree = ward(features(group, named_tensors(model)))
    assert tree.cut(3).tolist() == [0, 1, 2, 0, 1, 2]
    assert tree.cut(6).tolist() == list(range(6))
    assert set(tree.cut(1).tolist()) == {0}
    assert np.all(np.diff(tree.costs) >= 0)


def test_clusters_of_one_size_after_a_round_that_was_the_last() -> None:
    data, start = np.asarray([[0.0], [0.1], [5.0], [5.1]]), np.asarray([0, 1, 1, 1])
    assert balanced(data, start, 2, rounds=0).tolist() == [0, 1, 1, 1]
    assert balanced(data, start, 2, rounds=1).tolist() == [0, 0, 1, 1]


def test_layers_count_alike_in_the_features() -> None:
    """A layer a thousand times larger does not drown the other."""
    torch.manual_seed(0)
    model = between(lambda m, x: x + m.a(x), a=conv(8, 8))()
    with torch.no_grad():
        model.a.weight *= 1000  # type: ignore[operator, union-attr]
    group = analyze(model, torch.zeros(1, 3, 8, 8)).groups[0]
    blocks = np.split(features(group, named_tensors(model)), [27], axis=1)
    assert np.allclose([np.square(b).sum() for b in blocks], 8.0)


@given(st.lists(st.integers(0, 400), max_size=40))
def test_integers_survive(values: list[int]) -> None:
    assert decode_integers(encode_integers(values)).tolist() == values


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30))
def test_first_appearance(values: list[int]) -> None:
    labels = first_appearance(np.asarray(values))
    assert [values.index(v) for v in values] == [labels.tolist().index(c) for c in labels]
    assert list(dict.fromkeys(labels.tolist())) == list(range(len(set(values))))


def test_json_round_trip(resnet: tuple[nn.Module, ChannelGroups]) -> None:
    found = plan(*resnet, flops_reduction=0.5)
    again = ClusterPlan.from_json(found.to_json())
    assert again.widths == found.widths
    assert again.macs_after == found.macs_after
    assert again.groups.digest() == found.groups.digest()
    assert ChannelGroups.from_json(found.groups.to_json()).to_json() == found.groups.to_json()


def test_a_certificate_is_json() -> None:
    found = check(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)), torch.zeros(1, 3, 8, 8))
    data = json.loads(found.to_json())
    assert data == json.loads(json.dumps(found.to_dict()))
    assert (data["passed"], data["macs_before"], data["macs_after"]) == (True, 12384, 6192)


@pytest.mark.parametrize("text", ["", "{", "[1"])
def test_json_that_is_none(text: str) -> None:
    with pytest.raises(ArtifactError, match="not the JSON"):
        ClusterPlan.from_json(text)


@pytest.mark.parametrize(
    ("clusters", "words"),
    [
        ([], "a plan for 0 groups does not fit 1 groups"),
        ([[0, 0, 1, 1], [0]], "a plan for 2 groups does not fit 1 groups"),
        ([[0, 0, 1]], r"cluster numbers do not fit the group \[0: \(3,\)\]"),
        ([[1, 1, 0, 0]], r"clusters are not numbered by first appearance \[0\]"),
        ([[0, 0, 2, 2]], r"clusters are not numbered by first appearance \[0\]"),
    ],
)
def test_plans_that_do_not_fit_their_groups(clusters: list[list[int]], words: str) -> None:
    groups = analyze(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)), torch.zeros(1, 3, 8, 8))
    with pytest.raises(ArtifactError, match=f"^{words}$"):
        ClusterPlan(groups, tuple(map(np.asarray, clusters)))


def test_networkx(resnet: tuple[nn.Module, ChannelGroups]) -> None:
    graph = resnet[1].to_networkx()
    stream = next(n for n, d in graph.nodes(data=True) if d["kind"] == "group" and d["name"] == "conv1")
    assert "conv1.weight[0]" in graph[stream]
    assert graph[stream]["conv1.weight[0]"]["role"] == "producer"


class Normalised(nn.Module):
    """A residual block with group norm, and a layer norm over the channels of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv(3, 32), conv(32, 32), conv(32, 16)
        self.n, self.m = nn.GroupNorm(4, 32), nn.LayerNorm(48)
        self.head = nn.Linear(48, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = (x + self.n(self.a(x))).relu()
        return self.head(self.m(torch.cat([x, self.b(x)], 1).mean((2, 3))))  # type: ignore[no-any-return]


@pytest.mark.parametrize("mode", ["hard", "pdc"])
def test_channels_that_are_averaged_form_clusters_of_one_size(mode: Any) -> None:
    torch.manual_seed(0)
    model, inputs = Normalised(), torch.randn(2, 3, 8, 8)
    groups = analyze(model, inputs)
    assert len(groups.balanced) == 1
    halves = {i: g.channels // 2 for i, g in enumerate(groups.groups)}
    made = plan(model, groups, flops_reduction=1 - groups.macs(halves) / groups.macs())
    assert made.widths == halves
    assert {int(n) for clusters in made.clusters for n in np.bincount(clusters)} == {2}
    tying = tie(model, made, mode=mode, total_steps=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(4):
        optimizer.zero_grad()
        model(inputs).square().sum().backward()
        optimizer.step()
        tying.step()
    compact = rewrite(model, tying.snap(), inputs)
    assert isinstance(compact, Normalised)
    assert (compact.n.num_channels, compact.m.normalized_shape) == (16, (24,))


def test_a_plan_with_clusters_of_two_sizes_is_refused() -> None:
    groups = analyze(Normalised(), torch.randn(2, 3, 8, 8))
    uneven = [np.asarray([0, 0, 0, *range(1, g.channels - 2)]) for g in groups.groups]
    with pytest.raises(ArtifactError, match="different sizes"):
        ClusterPlan(groups, tuple(uneven))


@pytest.mark.parametrize("start", ["weights", "images"])
def test_a_small_network_meets_the_budget_whatever_its_weights(start: str) -> None:
    """Its steps are larger than the tolerance: at the end one group has to take a few for some of another."""
    images = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for seed in range(30):
        torch.manual_seed(seed)
        net = nn.Sequential(
            *(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 16, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10)),
        )
        groups = analyze(net, images[:1])
        if start == "weights":
            made = plan(net, groups, flops_reduction=0.5)
        else:
            _, made = calibrate(net, groups, images, flops_reduction=0.5)
        assert made.flops_reduction == pytest.approx(0.5, abs=0.01)


def test_a_step_that_is_a_little_too_large_is_taken_where_nothing_else_meets_the_budget() -> None:
    net = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1152, 10))
    found = plan(net, analyze(net, torch.zeros(1, 1, 8, 8)), flops_reduction=0.4)  # steps of 3.1%: 37.5% or 40.6%
    assert found.widths == {0: 19}


class Normed(nn.Module):
    """Both inputs of a layer norm shrink together, in large steps."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm, self.head = (
            nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1), nn.LayerNorm(24), nn.Conv2d(24, 4, 1),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        y = torch.cat([x, self.b(x)], 1).permute(0, 2, 3, 1)
        return self.head(self.norm(y).permute(0, 3, 1, 2))  # type: ignore[no-any-return]


@pytest.mark.parametrize("allocation", ["global", "uniform"])
@pytest.mark.parametrize("target", [0.1, 0.4, 0.7])
def test_a_budget_that_cannot_be_met_names_reductions_that_can(target: float, allocation: Any) -> None:
    model = Normed()
    groups = analyze(model, torch.zeros(1, 3, 16, 16))
    with pytest.raises(PlanError, match="widths come in whole channels") as caught:
        plan(model, groups, flops_reduction=target, allocation=allocation)
    named = [float(percent) / 100 for percent in re.findall(r"([\d.]+)%", caught.value.what)]
    assert named[0] == target
    assert min(named[1:]) > 0
    for reduction in named[1:]:
        found = plan(model, groups, flops_reduction=reduction, allocation="global")
        assert abs(found.flops_reduction - reduction) < 0.01
