"""The graph of operators says what the analysis says, and other programs can read it."""

from __future__ import annotations

import re

import networkx as nx
import pytest
import torch
import torchvision
from torch import nn

from pdc_fx.export.inspection import layer_rows, summary
from pdc_fx.export.pages.drawing import hues, spoken, stripes
from pdc_fx.export.pages.graph_files import to_dot, to_graphml
from pdc_fx.export.pages.model_graph import ModelGraph
from pdc_fx.export.pages.network import constraints, frozen_rows, group_rows
from pdc_fx.pipeline import inspect
from pdc_fx.words import quantity


class Small(nn.Module):
    """A residual block, a concat, a part that stays, and a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.side, self.gate, self.head = nn.Conv2d(8, 6, 1), nn.Conv2d(14, 4, 1), nn.Linear(4, 5)
        self.spare = nn.Linear(7, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.block(x).relu()
        x = torch.cat([x, self.side(x)], 1)
        return self.head(self.gate(x).softmax(1).mean((2, 3)))


@pytest.fixture(scope="module")
def small() -> ModelGraph:
    return inspect(Small(), torch.zeros(1, 3, 6, 6))


@pytest.fixture(scope="module", params=["small", "resnet18", "squeezenet1_1", "mobilenet_v3_small"])
def graph(request: pytest.FixtureRequest, small: ModelGraph) -> ModelGraph:
    if request.param == "small":
        return small
    return inspect(getattr(torchvision.models, request.param)(), torch.zeros(1, 3, 64, 64))


def test_small(small: ModelGraph) -> None:
    names = [node.name for node in small.nodes]
    assert names == [
        "input",
        "conv2d",
        "conv2d",
        "relu",
        "add",
        "conv2d",
        "cat",
        "conv2d",
        "softmax",
        "mean",
        "linear",
        "output",
    ]
    stream, side = (next(i for i, g in enumerate(small.groups.groups) if g.name == name) for name in ("stem", "side"))
    assert small.streams == (stream,)
    assert small.joins == {stream: (4,)}
    assert small.nodes[6].groups == {stream: 8, side: 6}
    assert small.nodes[7].frozen
    assert {small.reasons[r] for r in small.nodes[10].frozen} == {"is an output of the model"}
    assert (4, 6) in small.edges
    assert (5, 6) in small.edges
    assert [layer.module for layer in small.layers][-1] == "spare"
    assert small.layers[-1].at is None
    sentences = " ".join(summary(small))
    assert "1 residual stream couples the outputs of 2 layers" in sentences
    assert "5 channels of head are frozen" in sentences


def test_edges_go_forward_and_counts_agree(graph: ModelGraph) -> None:
    assert all(0 <= start < stop < len(graph.nodes) for start, stop in graph.edges)
    assert sum(node.macs for node in graph.nodes) + graph.groups.fixed_macs == graph.groups.macs()
    assert sum(layer.macs for layer in graph.layers) + graph.groups.fixed_macs == graph.groups.macs()
    assert sum(layer.params for layer in graph.layers) == graph.groups.params()
    for node in graph.nodes:
        for group, count in node.groups.items():
            assert 0 < count <= graph.groups.groups[group].channels


def test_every_group_is_seen_where_its_producers_run(graph: ModelGraph) -> None:
    for index, group in enumerate(graph.groups.groups):
        for member in group.producers:
            assert any(index in graph.nodes[n].groups for n in graph.readers[member.tensor])


def test_stakes_are_what_goes_with_a_group(graph: ModelGraph) -> None:
    macs, params = graph.groups.macs(), graph.groups.params()
    for index, stake in enumerate(graph.stakes):
        assert stake == (macs - graph.groups.macs({index: 0}), params - graph.groups.params({index: 0}))


def test_rows_of_the_page_add_up(graph: ModelGraph) -> None:
    assert sum(row.channels for row in frozen_rows(graph)) + graph.groups.mergeable_channels == graph.groups.channels
    layers, (count, params) = layer_rows(graph)
    assert len(layers) + count == len(graph.layers)
    assert sum(row.params for row in layers) + params == graph.groups.params()
    rows = group_rows(graph)
    assert max((row.bar for row in rows), default=100) == 100
    assert len(hues(graph)) == len(rows)


def test_graphml_and_dot_hold_the_same_graph(graph: ModelGraph) -> None:
    read = nx.parse_graphml(to_graphml(graph.to_networkx()), node_type=int)
    assert set(read.edges) == set(graph.edges)
    for index, node in enumerate(graph.nodes):
        assert read.nodes[index]["macs"] == node.macs
        assert read.nodes[index]["module"] == node.module
        assert read.nodes[index]["channel_group"] == (-1 if node.main_group is None else node.main_group)
    dot = to_dot(graph.to_networkx())
    assert {tuple(map(int, pair)) for pair in re.findall(r"^  (\d+) -> (\d+)$", dot, re.M)} == set(graph.edges)
    assert len(re.findall(r"^  \d+ \[", dot, re.M)) == len(graph.nodes)


@pytest.mark.parametrize("name", ['a "b"', "back\\slash", "<tag>&amp;", "层\u202e", "line\nbreak", "\ud800", "a\x00b"])
def test_odd_names_survive_in_files(name: str) -> None:
    net = nn.Sequential()
    net.add_module(name, nn.Conv2d(1, 4, 1))
    graph = inspect(net, torch.zeros(1, 1, 2, 2)).to_networkx()
    text = to_graphml(graph)
    assert text.encode()
    shown = nx.parse_graphml(text).nodes["1"]["module"]
    assert shown == name or "\\u" in shown
    line = next(line for line in to_dot(graph).splitlines() if line.startswith("  1 ["))
    texts = r'"(?:[^"\\\n]|\\.)*"'
    assert re.fullmatch(rf"  1 \[(?:\w+=(?:{texts}|\d+) ?)+\]", line)


def test_many_groups_are_counted_where_they_are_not_named() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts, self.head = nn.ModuleList(nn.Conv2d(3, n + 1, 1) for n in range(1, 15)), nn.Conv2d(119, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.head(torch.cat([part(x) for part in self.parts], 1))
            return y

    graph = inspect(Joined(), torch.zeros(1, 3, 4, 4))
    node = next(node for node in graph.nodes if node.name == "cat")
    assert spoken(node) == ("cat, 2 channels of group 0, 3 channels of group 1, 4 channels of group 2, 11 more groups")
    shown, colours = stripes(graph, node, hues(graph)), hues(graph)
    assert [part.hue for part in shown] == list(colours[13:1:-1])  # the twelve widest, the widest first


class Constrained(nn.Module):
    """A norm over groups, a layer norm, layers of one group that are joined by a norm they share, and outputs of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm, self.last = (
            nn.Conv2d(3, 8, 1),
            nn.Conv2d(3, 8, 1),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 4, 1),
        )
        self.c, self.d, self.means = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 16, 1), nn.LayerNorm(24)
        self.e, self.head, self.cumulative = nn.Conv2d(3, 6, 1), nn.Linear(24, 5), nn.Conv2d(6, 4, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        joined = self.last(self.norm(self.a(x))) + self.last(self.norm(self.b(x)))
        rows = torch.cat([self.c(x), self.d(x)], 1).mean((2, 3))
        return joined, self.head(self.means(rows)), self.cumulative(self.e(x).softmax(1)).cumsum(1).sum(1)


def test_what_binds_a_group_is_said() -> None:
    graph = inspect(Constrained(), torch.zeros(1, 3, 4, 4))
    words = {group.name: constraints(graph, i) for i, group in enumerate(graph.groups.groups)}
    assert words["a"] == ["one clustering for 2 layers"]
    together = "clusters of one size (a normalisation averages over them), together with 1 other group"
    assert words["c"] == words["d"] == [together]
    *_, first, second, others = summary(graph)
    assert first == "9 channels of last, head are frozen: “is an output of the model”."
    assert second.startswith("6 channels of e are frozen: “torch.Tensor.softmax mixes all channels")
    assert others == "4 channels more are frozen for 1 other reason."


def test_where_nothing_is_frozen_it_is_said() -> None:
    assert summary(inspect(nn.ReLU(), torch.zeros(1, 3, 4, 4))) == ["No layer multiplies.", "Nothing is frozen."]


def test_parts_of_a_value_are_all_its_channels() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            left, right = self.stem(x).chunk(2, 1)
            y: torch.Tensor = self.head(left * right)
            return y

    graph = inspect(Halves(), torch.zeros(1, 3, 4, 4))
    (node,) = (node for node in graph.nodes if node.name == "chunk")
    assert node.groups == {0: 4}


@pytest.mark.parametrize(("count", "text"), [(10**15, "1000 T"), (12_345 * 10**12, "12300 T"), (10**12, "1 T")])
def test_counts_beyond_the_last_prefix(count: int, text: str) -> None:
    assert quantity(count) == text


def test_files_are_the_same_every_time(small: ModelGraph) -> None:
    again = inspect(Small(), torch.zeros(1, 3, 6, 6))
    assert again.to_dict() == small.to_dict()
    assert to_dot(again.to_networkx()) == to_dot(small.to_networkx())
